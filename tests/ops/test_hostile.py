"""Inputs that break kernels: extreme values, shapes and strides, fresh memory, partial gradients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from trecvit_kernels import backends
from trecvit_kernels.ops import _schedule

from ._suite import (
    assert_matches,
    cotangents_for,
    leaves,
    map_tensors,
    named_outputs,
    on,
    run,
    run_without_grad,
    truth,
    truth_of,
)

RECURRENT = ("linear_scan", "gated_lru", "recurrent_mixer")
pytestmark = pytest.mark.sanitize

# One or two ordinary cases per op, for tests that change something about them.
_ORDINARY = {
    "linear_scan": ("video-f32", "start-reverse-bf16", "video-c64"),
    "gated_lru": ("video-real-f32", "resets-complex-bf16", "start-complex-f32"),
    "recurrent_mixer": ("video-real-f32", "resets-complex-bf16", "start-complex-f32"),
    "spatial_attention": ("video-f32", "scaled-bf16"),
}


def _ordinary(op, device) -> Iterator[tuple[str, dict, dict]]:
    names = _ORDINARY[op.name]
    if backends.interpreted():  # slow: the case that has most
        names = names[1:2]
    for name in names:
        expected = truth(op, op.case(name))
        yield name, on(device, expected.inputs), on(device, expected.cotangents)


def _same(first, second, where=""):
    """Bit for bit."""
    others = dict(second.items())
    for name, value in first.items():
        assert value.equal(others[name]), f"{where} {name}"


# Shapes and memory


@pytest.mark.kernels_only
@pytest.mark.ops(*RECURRENT)
@pytest.mark.parametrize("where", ("batch", "lanes"))
def test_more_than_65535_sequences(op, backend, device, where):
    batch, lanes = (70_000, ()) if where == "batch" else (1, (70_000,))
    sizes = {} if op.name == "linear_scan" else {"channels": 2}
    if op.name == "recurrent_mixer":
        sizes["heads"] = 1
    case = type(op.cases[0])("many", batch, 2, lanes, **sizes)
    expected = truth(op, case)
    got = run(op, on(device, expected.inputs), backend, on(device, expected.cotangents))
    assert_matches(got, expected, where)


@pytest.mark.large
@pytest.mark.kernels_only
@pytest.mark.parametrize("dim", (0, 1, 2), ids=("batch", "time", "rows"))
def test_offsets_beyond_2_to_the_31(op, backend, device, dim):
    """Views whose last element lies more than 2^31 elements behind their first."""
    if op.name == "spatial_attention":
        case = type(op.cases[0])("far", (3, 3), 3, 1, 8, torch.bfloat16)
    else:
        sizes = {} if op.name == "linear_scan" else {"channels": 8}
        lanes = (3, 8) if op.name == "linear_scan" else (3,)
        case = type(op.cases[0])("far", 3, 3, lanes, dtype=torch.bfloat16, **sizes)
    inputs = on(device, op.make_inputs(case))
    compact = {name: value for name, value in inputs.items() if name in ("a", "b", "x", "u", "v", "qkv")}
    compact |= {name: inputs[name] for name in ("gate_x", "gate_a") if name in inputs}
    far_apart = 2**30 + 8  # three of them pass 2^31
    one = next(iter(compact.values()))
    arena = torch.empty(2 * far_apart + 8 * one.numel() * len(compact), dtype=torch.bfloat16, device=device)
    offset, far = 0, {}
    for name, value in compact.items():
        strides = list(value.stride())
        strides[dim] = far_apart
        far[name] = arena.as_strided(value.shape, strides, offset).copy_(value)
        assert (far[name].shape[dim] - 1) * far_apart > 2**31
        offset += value.numel()
    expected = truth(op, case)
    assert_matches(run(op, inputs | far, backend, on(device, expected.cotangents)), expected)


@pytest.mark.kernels_only
def test_every_output_element_is_written(op, backend, device):
    """With fresh memory full of NaN the results stay those of an ordinary run."""
    for name, inputs, cotangents in _ordinary(op, device):
        for schedule in op.schedules(backend):
            plain = run(op, inputs, backend, cotangents, schedule)
            torch.use_deterministic_algorithms(True)  # makes torch.empty fill its memory with NaN
            try:
                assert torch.utils.deterministic.fill_uninitialized_memory
                _same(run(op, inputs, backend, cotangents, schedule), plain, f"{name} {schedule}")
            finally:
                torch.use_deterministic_algorithms(False)


def test_inputs_stay_untouched_and_outputs_own_their_memory(op, backend, device):
    for name, inputs, cotangents in _ordinary(op, device):
        before = map_tensors(inputs, torch.clone)
        outputs = run_without_grad(op, inputs, backend)
        gradients = run(op, inputs, backend, cotangents).gradients
        for key, value in leaves(inputs).items():
            assert value.equal(leaves(before)[key]), f"{name}: {key} was written"
        storages = [t.untyped_storage().data_ptr() for t in (*leaves(inputs).values(), *cotangents.values())]
        for key, value in outputs.items():
            assert value.is_contiguous(), f"{name}: {key}"
            assert value.untyped_storage().data_ptr() not in storages, f"{name}: {key} aliases an input"
            storages.append(value.untyped_storage().data_ptr())
        inputs_only = [t.untyped_storage().data_ptr() for t in leaves(inputs).values()]
        for key, value in gradients.items():
            assert value.untyped_storage().data_ptr() not in inputs_only, f"{name}: gradient of {key}"


# Gradients


@pytest.mark.same_for_kernels
@pytest.mark.kernels_only
def test_awkward_output_gradients(op, backend, device):
    """Gradients of the outputs that are expanded (y.sum().backward()), transposed, slices."""
    for name, inputs, cotangents in _ordinary(op, device):
        expected = truth(op, op.case(name))
        transposed = {key: value.mT.contiguous().mT for key, value in cotangents.items()}
        assert_matches(run(op, inputs, backend, transposed), expected, f"{name} transposed")
        sliced = {
            key: torch.stack([torch.full_like(value, torch.nan), value], -1)[..., 1]
            for key, value in cotangents.items()
        }
        assert_matches(run(op, inputs, backend, sliced), expected, f"{name} sliced")
        ones = {key: value.new_ones(()).expand(value.shape) for key, value in cotangents.items()}
        on_cpu = {key: value.cpu() for key, value in ones.items()}
        expected = truth_of(op, op.make_inputs(op.case(name)), on_cpu)
        assert_matches(run(op, inputs, backend, ones), expected, f"{name} expanded")


@pytest.mark.same_for_kernels
@pytest.mark.ops(*RECURRENT)
def test_one_output_used(op, backend, device):
    """Only y, or only h_last, has a gradient: as if the others' were zero."""
    for name, inputs, cotangents in _ordinary(op, device):
        for used in op.outputs:
            zeros = {
                key: value if key == used else torch.zeros_like(value) for key, value in cotangents.items()
            }
            expected = run(op, inputs, backend, zeros).gradients
            with_grad = map_tensors(
                inputs, lambda t: t if t.dtype == torch.bool else t.detach().requires_grad_()
            )
            output = named_outputs(op, op.function(**with_grad, backend=backend))[used]
            wanted = leaves(with_grad)
            got = torch.autograd.grad(output, list(wanted.values()), cotangents[used], allow_unused=True)
            for (key, value), gradient in zip(expected.items(), got, strict=True):
                gradient = torch.zeros_like(value) if gradient is None else gradient
                assert gradient.equal(value), f"{name} {used}: gradient of {key}"


@pytest.mark.same_for_kernels
@pytest.mark.kernels_only
def test_one_input_requires_grad(op, backend, device):
    for name, inputs, cotangents in _ordinary(op, device):
        everything = run(op, inputs, backend, cotangents).gradients
        for wanted, tensor in leaves(inputs).items():
            leaf = tensor.detach().requires_grad_()
            chosen = map_tensors(inputs, lambda t, old=tensor, new=leaf: new if t is old else t)
            outputs = named_outputs(op, op.function(**chosen, backend=backend))
            used = [key for key, value in outputs.items() if value.requires_grad]
            (gradient,) = torch.autograd.grad(
                [outputs[key] for key in used], [leaf], [cotangents[key] for key in used]
            )
            assert gradient.equal(everything[wanted]), f"{name}: {wanted}"


# Values


@pytest.mark.kernels_only
@pytest.mark.ops("gated_lru")
@pytest.mark.parametrize("is_complex", (False, True), ids=("real", "complex"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float64), ids=str)
def test_extreme_gates_and_decays(op, backend, device, is_complex, dtype):
    """Gates from -inf to inf and decays whose powers under- and overflow: finite, as the reference."""
    extremes = torch.tensor([-torch.inf, -1e30, -1e4, -1e2, -20.0, 0.0, 20.0, 1e2, 1e4, 1e30, torch.inf])
    case = type(op.cases[0])("gates", 1, 22, (11,), 14 if is_complex else 7, dtype, is_complex)
    for normalizer in ("sqrt", "convex"):
        inputs = op.make_inputs(case)
        inputs["normalizer"] = normalizer
        inputs["gate_x"][0, 5] = extremes.to(dtype)[:, None]
        inputs["gate_a"][0, 9] = extremes.to(dtype)[:, None]
        inputs["gate_x"][0, 17], inputs["gate_a"][0, 17] = extremes.to(dtype)[:, None], torch.inf
        inputs["a_param"] = torch.tensor(
            [-100.0, -30.0, -17.0, 0.0, 17.0, 30.0, 100.0], dtype=inputs["a_param"].dtype
        )
        expected = truth_of(op, inputs)
        assert all(value.isfinite().all() for _, value in expected.exact.items())
        for schedule in op.schedules(backend):
            got = run(op, on(device, inputs), backend, on(device, expected.cotangents), schedule)
            assert_matches(got, expected, f"{normalizer} {schedule}")


@pytest.mark.parametrize("bad", (torch.nan, torch.inf, -torch.inf), ids=str)
def test_bad_activations_reach_only_what_depends_on_them(op, backend, device, bad):
    """One NaN or Inf: other examples, lanes and frames, and sequences after a reset, stay as they were."""
    activations = {"a", "b", "x", "gate_x", "gate_a", "u", "v", "qkv"}
    for name, inputs, cotangents in _ordinary(op, device):
        if backends.interpreted() and bad == bad:
            cotangents = None  # slow: the backward pass, which must only end, with NaN alone
        inputs = map_tensors(inputs, torch.clone)  # PyTorch's kernels round differently on other strides
        frame = 0 if op.name == "spatial_attention" else 1
        for schedule in op.schedules(backend):
            clean = run(op, inputs, backend, None, schedule).outputs
            for target in activations & inputs.keys():
                poisoned = dict(inputs, **{target: inputs[target].clone()})
                poisoned[target][0, frame, 0, 1] = bad
                got = run(op, poisoned, backend, cotangents, schedule).outputs
                for key, value in got.items():
                    kept = (value == clean[key]) | _reached(op, key, value, target, inputs)
                    assert kept.all(), f"{name} {schedule}: {target} leaked into {key}"
                # Infinite gates saturate; PyTorch's attention makes zeros of a row with an infinite score.
                if target in ("a", "b", "x", "u", "v") or (target == "qkv" and bad != bad):
                    assert not got[op.outputs[0]][0, frame, 0].isfinite().all(), (
                        f"{name}: {target} was swallowed"
                    )


@pytest.mark.kernels_only
@pytest.mark.ops("gated_lru")
@pytest.mark.parametrize("frames", (5, 21, 37))
def test_a_reset_stops_nan_between_segments(op, backend, device, frames):
    """Segments of time exchange products of decays; one that a reset made zero must not meet NaN from before."""
    torch.set_num_threads(4)
    lanes = 3 if backends.interpreted() else 1024  # of which a CPU's threads get 16,384 elements each
    x, gate = torch.randn(1, 65, 1, lanes), torch.randn(1, 65, 1, lanes)
    x[:, 3] = torch.nan
    reset = torch.zeros(1, 65, dtype=torch.bool)
    reset[:, frames] = True
    with _schedule.force("chunked"):
        y, _ = op.function(*(t.to(device) for t in (x, gate, gate, torch.zeros(lanes))),
                           reset=reset.to(device), backend=backend)  # fmt: skip
    assert y[:, frames:].isfinite().all()
    assert y[:, 3:frames].isnan().all()


def _reached(op, key, value, target, inputs):
    """Elements of output ``key`` that may depend on (0, 1, 0, 1) of ``target`` (attention: (0, 0, 0, 1))."""
    reached = torch.zeros_like(value, dtype=torch.bool)
    if op.name == "spatial_attention":
        reached[0, 0] = True
        return reached
    if target == "v":
        if key == "z":
            reached[0, 1, 0, 1] = True
        return reached
    if key == "tail":
        reached[0, :, 0, 1] = True
        return reached
    frames = torch.arange(inputs[target].shape[1], device=value.device)
    after = frames <= 1 if inputs.get("reverse") else frames >= 1
    if inputs.get("reset") is not None:  # a reset ends the influence of everything before it
        segment = inputs["reset"][0].long().cumsum(0)
        after = after & (segment == segment[1])
    lane = torch.zeros(value.shape[-1], dtype=torch.bool, device=value.device)
    if op.name == "recurrent_mixer":
        lane[:] = True  # the gates mix the channels
    else:
        lane[1] = True
        if inputs.get("a_imag") is not None:
            lane[1 + value.shape[-1] // 2] = True
    if key == "h_last":
        reached[0, 0] = lane & after[0 if inputs.get("reverse") else -1]
    else:
        reached[0, :, 0] = after[:, None] & lane
    return reached


@pytest.mark.kernels_only
@pytest.mark.ops("gated_lru", "recurrent_mixer")
def test_reset_ignores_the_state_whatever_it_holds(op, backend, device):
    """A state full of NaN is as good as none where the first frame resets."""
    for kind in ("complex",) if backends.interpreted() else ("real", "complex"):
        inputs = on(device, op.make_inputs(op.case(f"reset-chunks-{kind}")))
        name = "h0" if op.name == "gated_lru" else "state"
        spoiled = map_tensors({name: inputs[name]}, lambda t: torch.full_like(t, torch.nan))
        cotangents = cotangents_for(run(op, inputs, backend, None).outputs)
        for schedule in op.schedules(backend):
            got = run(op, inputs | spoiled, backend, cotangents, schedule)
            _same(got, run(op, inputs, backend, cotangents, schedule), f"{kind} {schedule}")


@pytest.mark.parametrize("threads", (1, 2))
@pytest.mark.kernels_only
@pytest.mark.ops(*RECURRENT)
def test_bitwise_reproducible(op, backend, device, threads):
    """Twice the same, and the same with another number of threads: reductions have a fixed order."""
    if threads == 2 and (backends.interpreted() or backends.simulated()):
        pytest.skip("as with one thread: kernels for GPUs do not take a CPU's threads")
    case = type(op.cases[0])(
        "sums",
        3,
        40,
        (50,) if op.name != "linear_scan" else (50, 24),
        **({} if op.name == "linear_scan" else {"channels": 24}),
    )
    inputs = on(device, op.make_inputs(case))
    cotangents = cotangents_for(run(op, inputs, backend, None).outputs)
    for schedule in op.schedules(backend):
        torch.set_num_threads(2)
        expected = run(op, inputs, backend, cotangents, schedule)
        torch.set_num_threads(threads)
        _same(run(op, inputs, backend, cotangents, schedule), expected, schedule)
