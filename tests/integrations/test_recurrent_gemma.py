"""RecurrentGemma of transformers, patched, against itself: original, and original in float64."""

from __future__ import annotations

import copy
import functools
import io
import pickle
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trecvit_kernels as tk

pytest.importorskip("transformers")
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM
from transformers.models.recurrent_gemma import modeling_recurrent_gemma as source

HEADS, WIDTH, VOCABULARY = 4, 64, 61
PAD = 0


def model_of(layers: int = 3) -> RecurrentGemmaForCausalLM:
    """Two recurrent layers, then one of attention, and so on; weights with decays from short to long."""
    config = RecurrentGemmaConfig(
        num_hidden_layers=layers,
        vocab_size=VOCABULARY,
        hidden_size=32,
        lru_width=WIDTH,
        intermediate_size=96,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        attention_window_size=8,
        eos_token_id=None,
        pad_token_id=PAD,
    )
    model = RecurrentGemmaForCausalLM(config).eval()
    for module in model.modules():
        if isinstance(module, source.RecurrentGemmaRglru):
            randomise(module)
    return model


def randomise(module: nn.Module) -> None:
    """Gates that open and close, where the initial ones all stand near one half."""
    with torch.no_grad():
        for name in ("input_gate", "recurrent_gate"):
            getattr(module, f"{name}_weight").normal_(std=0.5)
            getattr(module, f"{name}_bias").normal_()
        module.recurrent_param.uniform_(-6.0, 0.0)  # decays at an open gate from 0.98 down to 0.004


def layer_of() -> nn.Module:
    module = source.RecurrentGemmaRglru(SimpleNamespace(num_attention_heads=HEADS, lru_width=WIDTH))
    randomise(module)
    return module


def patched(model: Any) -> Any:
    return tk.integrations.patch_recurrent_gemma(copy.deepcopy(model))


def layers_of(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, source.RecurrentGemmaRglru)]


def values_and_gradients(run: Callable[[], Tensor], parameters: list[Tensor]) -> list[Tensor]:
    out = run()
    weights = torch.linspace(-1.0, 1.0, out.numel(), dtype=out.dtype).view_as(out)
    gradients = torch.autograd.grad(out, parameters, weights)
    return [out.detach(), *gradients]


def assert_equal(
    monkeypatch: pytest.MonkeyPatch, original: nn.Module, run: Callable[[Any], list[Tensor]]
) -> None:
    """What ``run`` finds in the patched model errs at most twice as much as what it finds in the original."""
    ours, exact = patched(original), copy.deepcopy(original).double()
    with monkeypatch.context() as context:  # float64 also where the original says float32
        context.setattr(source.RecurrentGemmaRglru._rnn_scan, "__defaults__", (torch.float64,))
        context.setattr(Tensor, "float", Tensor.double)
        truths = run(exact)
    for index, (a, b, truth) in enumerate(zip(run(ours), run(original), truths, strict=True)):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert truth.dtype == torch.float64
        units = 16 if a.dtype == torch.float32 else 2
        floor = units * torch.finfo(a.dtype).eps * truth.abs().max()
        allowed = 2 * (b.double() - truth).abs().max() + floor
        error = (a.double() - truth).abs().max()
        assert error <= allowed, f"result {index}: off by {error:.1e}, allowed {allowed:.1e}"


def tokens(batch: int = 2, length: int = 12) -> Tensor:
    return torch.randint(1, VOCABULARY, (batch, length))


def left_padded(ids: Tensor) -> dict[str, Tensor]:
    """The first sequence has five tokens less; positions as ``generate`` counts them."""
    ids, mask = ids.clone(), torch.ones_like(ids)
    ids[0, :5], mask[0, :5] = PAD, 0
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1),
    }


POSITIONS = {
    "from zero": lambda: torch.arange(12)[None],
    "goes on": lambda: torch.arange(5, 17)[None],
    "resets of each sequence": lambda: torch.stack([torch.arange(12) % 5, (torch.arange(12) + 3) % 7]),
    "left padding": lambda: left_padded(tokens())["position_ids"],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("state", [False, True], ids=["fresh", "state"])
def test_layer(positions: str, state: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs, the state left behind, and gradients of inputs, parameters and the state that came in."""
    original = layer_of().to(dtype)
    x = torch.randn(2, WIDTH, 12).to(dtype).transpose(1, 2)  # as the convolution hands it over
    h = torch.randn(2, WIDTH)
    position_ids = POSITIONS[positions]()

    def run(module: Any) -> list[Tensor]:
        wide = module.recurrent_param.dtype
        leaves = [x.to(wide).requires_grad_()]
        module.recurrent_states = None
        if state:
            leaves.append(h.to(torch.promote_types(wide, torch.float32)).requires_grad_())
            module.recurrent_states = leaves[1]
        out = []

        def both() -> Tensor:
            out.append(module(leaves[0], position_ids))
            out.append(module.recurrent_states)
            return torch.cat([out[0].double().flatten(), out[1].double().flatten()])

        _, *gradients = values_and_gradients(both, leaves + list(module.parameters()))
        return [*(t.detach() for t in out), *gradients]

    assert_equal(monkeypatch, original, run)


@pytest.mark.parametrize("batch", [1, 3])
def test_frame_by_frame(batch: int) -> None:
    """Steps of one frame hand on a state that the original can take over, and the reverse."""
    original = layer_of()
    ours = patched(original)
    x, position_ids = torch.randn(batch, 9, WIDTH), (torch.arange(9) % 6)[None]
    with torch.no_grad():
        whole = original(x, position_ids)
        last = original.recurrent_states
        state, frames = None, []
        for t in range(9):
            module = ours if t % 3 else original
            module.recurrent_states = state
            frames.append(module(x[:, t : t + 1], position_ids[:, t : t + 1]))
            state = module.recurrent_states
            assert state.dtype == torch.float32 and state.shape == (batch, WIDTH)
    torch.testing.assert_close(torch.cat(frames, 1), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, last, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("padded", [False, True], ids=["plain", "left padding"])
def test_model(padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits and the gradients of all parameters, through four layers."""
    original = model_of(4)
    ids = tokens()
    inputs: dict[str, Any] = left_padded(ids) if padded else {"input_ids": ids}

    def run(model: Any) -> list[Tensor]:
        def logits() -> Tensor:
            return model(**inputs, use_cache=False).logits

        return values_and_gradients(logits, list(model.parameters()))

    assert_equal(monkeypatch, original, run)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing() -> None:
    plain = patched(model_of()).train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable()
    ids = tokens()
    for model in (plain, checkpointed):
        model(ids, labels=ids, use_cache=False).loss.backward()
    for a, b in zip(plain.parameters(), checkpointed.parameters()):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_autocast(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that gets float32 gives float32, one behind a 16-bit convolution gives 16 bits, as the original."""
    x = torch.randn(2, 12, WIDTH).to(dtype)

    def run(module: Any) -> list[Tensor]:
        narrow = module.recurrent_param.dtype != torch.float64
        leaf = (x if narrow else x.double()).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            out = module(leaf, torch.arange(12)[None])
        return values_and_gradients(lambda: out, [leaf, *module.parameters()])

    assert_equal(monkeypatch, layer_of(), run)


def test_bfloat16_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The original keeps its decays in bfloat16, where the number below 1 is 0.996."""
    original = model_of().to(torch.bfloat16)
    ids = tokens()

    def run(model: Any) -> list[Tensor]:
        with torch.no_grad():
            return [model(ids, use_cache=False).logits]

    assert_equal(monkeypatch, original, run)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("padded", [False, True], ids=["plain", "left padding"])
def test_generation_with_cache(beams: int, padded: bool) -> None:
    """The same tokens one by one, also in a second call, which finds the state of the first."""
    original = model_of()
    ours = patched(original)
    choices = {"max_new_tokens": 10, "do_sample": False, "num_beams": beams, "use_cache": True}
    choices |= {"output_logits": True, "return_dict_in_generate": True}
    for length in (12, 7):
        ids = tokens(2, length)
        inputs = left_padded(ids) if padded else {"input_ids": ids}
        inputs.pop("position_ids", None)
        theirs, mine = original.generate(**inputs, **choices), ours.generate(**inputs, **choices)
        assert theirs.sequences.shape == (2, length + 10)
        assert torch.equal(mine.sequences, theirs.sequences)
        for a, b in zip(mine.logits, theirs.logits, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    for a, b in zip(layers_of(ours), layers_of(original)):
        assert a.recurrent_states.dtype == b.recurrent_states.dtype == torch.float32
        torch.testing.assert_close(a.recurrent_states, b.recurrent_states, atol=1e-4, rtol=1e-4)


def test_under_torch_compile() -> None:
    """Traced without a graph break, state included; traced anew when the patch is taken out."""
    compiler = functools.partial(torch.compile, backend="aot_eager", fullgraph=True)
    original = layer_of()
    ours = patched(original)
    compiled = compiler(ours)
    x, position_ids = torch.randn(2, 5, WIDTH), torch.arange(5)[None]
    with torch.no_grad():
        eager = patched(original)
        for positions in (position_ids, position_ids + 5):  # the second call goes on from the first
            assert torch.equal(compiled(x, positions), eager(x, positions))
            assert torch.equal(ours.recurrent_states, eager.recurrent_states)
        tk.integrations.unpatch(ours).recurrent_states = None
        assert torch.equal(compiled(x, position_ids), compiler(original)(x, position_ids))


def test_unpatch_restores_the_original() -> None:
    """Bit by bit, and nothing of the model has changed on the way."""
    model = model_of()
    ids = tokens()
    choices = {
        "max_new_tokens": 4,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = model.generate(ids, **choices)
    attributes = [set(vars(module)) for module in layers_of(model)]
    assert tk.integrations.patch_recurrent_gemma(model) is model
    assert tk.integrations.patch_recurrent_gemma(model) is model  # a second time changes nothing
    assert "recurrence=trecvit_kernels" in repr(model)
    assert all(isinstance(module, source.RecurrentGemmaRglru) for module in layers_of(model))
    model.generate(ids, **choices)
    assert [set(vars(module)) for module in layers_of(model)] == attributes
    assert tk.integrations.unpatch(model) is model
    assert tk.integrations.unpatch(model) is model
    assert all(type(module) is source.RecurrentGemmaRglru for module in layers_of(model))
    second = model.generate(ids, **choices)
    assert torch.equal(first.sequences, second.sequences)
    assert all(torch.equal(a, b) for a, b in zip(first.logits, second.logits))
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_what_is_written_is_the_original(tmp_path: Any) -> None:
    """Pickles and saved models do not know of the patch; copies in memory keep it."""
    original = model_of()
    ours = patched(original)
    assert list(ours.state_dict()) == list(original.state_dict())
    ids = tokens()
    with torch.no_grad():
        expected, fused = original(ids).logits, ours(ids).logits
        file = io.BytesIO()
        torch.save(ours, file)
        file.seek(0)
        for read in (pickle.loads(pickle.dumps(ours)), torch.load(file, weights_only=False)):
            assert all(type(module) is source.RecurrentGemmaRglru for module in layers_of(read))
            assert torch.equal(read(ids).logits, expected)
        assert b"trecvit" not in file.getvalue()
        ours.save_pretrained(tmp_path)
        read = RecurrentGemmaForCausalLM.from_pretrained(tmp_path).eval()
        assert torch.equal(read(ids).logits, expected)
        copied = copy.deepcopy(ours)
        assert torch.equal(copied(ids).logits, fused)
        copied.load_state_dict(original.state_dict())
        assert torch.equal(tk.integrations.unpatch(copied)(ids).logits, expected)
        assert torch.equal(ours(ids).logits, fused)  # the copy's patch was its own


def test_bare_model_and_single_layer() -> None:
    ids = tokens()
    whole = model_of(2)
    with torch.no_grad():
        expected = whole.model(ids, use_cache=False).last_hidden_state
        result = tk.integrations.patch_recurrent_gemma(whole.model)(ids, use_cache=False).last_hidden_state
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    assert all(type(module) is not source.RecurrentGemmaRglru for module in layers_of(whole))
    layer = layer_of()
    assert tk.integrations.unpatch(tk.integrations.patch_recurrent_gemma(layer)) is layer


def test_wrong_models() -> None:
    with pytest.raises(TypeError, match=r"patch_recurrent_gemma: model must be a torch.nn.Module, got str"):
        tk.integrations.patch_recurrent_gemma("google/recurrentgemma-2b")  # type: ignore[type-var]
    with pytest.raises(TypeError, match=r"unpatch: model must be a torch.nn.Module"):
        tk.integrations.unpatch(None)  # type: ignore[type-var]
    with pytest.raises(
        ValueError, match=r"RecurrentGemmaForCausalLM.*RecurrentGemmaRglru; Linear holds none"
    ):
        tk.integrations.patch_recurrent_gemma(nn.Linear(2, 2))


def test_replaced_forward_is_left_alone() -> None:
    """By accelerate's hooks, for one, which call the forward that they found and leave it on the instance."""
    first, second = layer_of(), layer_of()
    found, second.forward = second.forward, functools.partial(source.RecurrentGemmaRglru.forward, second)
    with pytest.raises(ValueError, match="forward of a RecurrentGemmaRglru was replaced"):
        tk.integrations.patch_recurrent_gemma(nn.ModuleList([first, second]))
    assert type(first) is source.RecurrentGemmaRglru  # all or none
    second.forward = found
    tk.integrations.patch_recurrent_gemma(second)
    found, second.forward = second.forward, functools.partial(type(second).forward, second)
    with pytest.raises(ValueError, match="changed after it was patched"):
        tk.integrations.unpatch(second)
    second.forward = found
    tk.integrations.unpatch(second)
    assert type(second) is source.RecurrentGemmaRglru and "forward" not in vars(second)


def test_other_versions_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    patch = tk.integrations.patch_recurrent_gemma
    layer = layer_of()
    del layer.recurrent_states
    layer.input_gate_bias = None
    del layer.input_gate_bias
    with pytest.raises(
        RuntimeError, match=r"transformers \d.* has no attribute input_gate_bias, recurrent_states"
    ):
        patch(layer)

    def forward(self: nn.Module, hidden_states: Tensor, cache: object) -> Tensor:
        return hidden_states

    with monkeypatch.context() as context:
        context.setattr(source.RecurrentGemmaRglru, "forward", forward)
        with pytest.raises(
            RuntimeError, match=r"takes \(hidden_states, cache\), expected \(activations, position"
        ):
            patch(layer_of())
    monkeypatch.delattr(source, "RecurrentGemmaRglru")
    with pytest.raises(RuntimeError, match=r"has no .*modeling_recurrent_gemma.RecurrentGemmaRglru"):
        patch(layer)
    monkeypatch.setitem(sys.modules, source.__name__, None)
    with pytest.raises(ImportError, match="needs transformers"):
        patch(layer)
