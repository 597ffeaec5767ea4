"""TRecViT against DeepMind's model: golden/trecvit/trecvit_{tiny,clips,tiny_ckpt}.npz and the key list."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import trecvit_kernels as tk
from trecvit_kernels.models import official

OUTPUT, GRADIENT = 1e-5, 2e-5  # golden/trecvit/README.md: absolute; relative to the largest element
ZERO_GRADIENT = 1e-7  # key biases: softmax does not see them, what remains is round-off of about 1e-9
GROUPS = ["", "clips2/", "uneven/", "gap/", "nonsquare/", "sincos2d/"]


class Golden:
    """One group of arrays: parameters, configuration, inputs and results."""

    def __init__(self, folder: Path, group: str) -> None:
        tiny, clips = (_load(folder / "trecvit" / f"trecvit_{name}.npz") for name in ("tiny", "clips"))
        parameters = {
            name.removeprefix("params/"): a for name, a in tiny.items() if name.startswith("params/")
        }
        results = {n: a for n, a in (clips if group else tiny).items() if not n.startswith("params/")}
        results = {name.removeprefix(group): a for name, a in results.items() if name.startswith(group)}
        for name in [name for name in results if name.startswith("params_override/")]:
            parameters[name.removeprefix("params_override/")] = results[name]
        if group == "gap/":
            del parameters["tokenizer/cls"]
        if group == "sincos2d/":
            del parameters["tokenizer/pos_embedding"]
        self.results = results
        source, prefix = clips if group else tiny, "nonsquare/" if group == "sincos2d/" else group
        self.video = source[f"{prefix}video"].permute(0, 1, 4, 2, 3).contiguous()
        self.labels = source[f"{prefix}labels"].long()
        frames_per_clip = int(results["frames_per_clip"]) if group else None
        self.config = tk.TRecViTConfig(
            width=48,
            depth=3,
            mlp_dim=192,
            num_heads=4,
            patch_size=8,
            image_size=tuple(self.video.shape[-2:]),
            lru_width=96,
            min_radius=0.5,
            pool="mean" if group == "gap/" else "cls",
            posemb="sincos2d" if group == "sincos2d/" else "learned",
            head_width=96,
            num_classes=11,
            frames_per_clip=frames_per_clip,
        )
        self.model = tk.TRecViT(self.config)
        self.model.load_state_dict(official.from_official(parameters, self.config), strict=True)

    def __getitem__(self, name: str) -> Tensor:
        return self.results[name]


def _load(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(params=GROUPS, ids=lambda group: group.rstrip("/") or "tiny")
def case(request: pytest.FixtureRequest, golden: Path) -> Golden:
    return Golden(golden, request.param)


def error(got: Tensor, expected: Tensor) -> float:
    assert got.shape == expected.shape and got.dtype == expected.dtype
    return (got - expected).abs().max().item()


def test_forward_loss_and_every_gradient(case: Golden, backend: str) -> None:
    video = case.video.requires_grad_()
    result = case.model(video, return_dict=True)
    for name in ("tokens", "encoded", "pre_logits", "logits", "probs"):
        assert error(result[name], case[name]) <= OUTPUT, name
    loss = torch.nn.functional.cross_entropy(result["logits"], case.labels)
    assert error(loss, case["loss"]) <= OUTPUT
    loss.backward()
    wanted = {name.removeprefix("grads/") for name in case.results if name.startswith("grads/")}
    parameters = {name: parameter.grad for name, parameter in case.model.named_parameters()}
    gradients = official.to_official(parameters, case.config)
    assert not wanted or set(gradients) == wanted
    for name in wanted:
        expected = case[f"grads/{name}"]
        limit = ZERO_GRADIENT if name.endswith("key/bias") else GRADIENT * expected.abs().max()
        assert error(gradients[name], expected) <= limit, name
    if wanted:
        expected = case["grad_video"].permute(0, 1, 4, 2, 3)
        assert error(video.grad, expected) <= GRADIENT * expected.abs().max()


def test_both_files_hold_the_same_parameters(golden: Path) -> None:
    tiny, clips = (_load(golden / "trecvit" / f"trecvit_{name}.npz") for name in ("tiny", "clips"))
    names = {name for name in tiny if name.startswith("params/")}
    assert names == {name for name in clips if name.startswith("params/")}
    assert all(torch.equal(tiny[name], clips[name]) for name in names)


def test_groups_with_gradients(golden: Path) -> None:
    """The test above must not pass for want of golden gradients."""
    with_gradients = [g for g in GROUPS if any(n.startswith("grads/") for n in Golden(golden, g).results)]
    assert with_gradients == ["", "clips2/", "gap/"]


def test_every_array_of_the_files_is_compared(golden: Path) -> None:
    known = {
        "video",
        "labels",
        "frames_per_clip",
        "loss",
        "tokens",
        "encoded",
        "pre_logits",
        "logits",
        "probs",
    }
    known |= {"grad_video", "posemb", "params_override"}
    for name, groups in (("tiny", [""]), ("clips", GROUPS[1:])):
        for array in _load(golden / "trecvit" / f"trecvit_{name}.npz"):
            if not array.startswith("params/"):
                group = next(g for g in groups if array.startswith(g))
                assert array.removeprefix(group).split("/")[0] in known | {"grads"}, array


def test_shorter_calls_agree(case: Golden, backend: str) -> None:
    with torch.no_grad():
        assert error(case.model(case.video), case["logits"]) <= OUTPUT
        assert error(case.model.forward_features(case.video), case["encoded"]) <= OUTPUT


def test_sincos_table(golden: Path) -> None:
    case = Golden(golden, "sincos2d/")
    assert error(case.model.pos_embedding, case["posemb"]) <= OUTPUT
    assert "pos_embedding" not in case.model.state_dict()


def test_uint8_video(golden: Path, backend: str) -> None:
    """Frames in [0, 255] give what frames / 255 give."""
    case = Golden(golden, "nonsquare/")
    video = (case.video * 255).round().to(torch.uint8)
    with torch.no_grad():
        assert error(case.model(video), case.model(video / 255)) <= OUTPUT


def test_edge_pixels_that_fill_no_patch_are_dropped(golden: Path, backend: str) -> None:
    case = Golden(golden, "nonsquare/")
    padded = torch.nn.functional.pad(case.video, (0, 7, 0, 5), value=9.0)
    with torch.no_grad():
        assert error(case.model(padded), case["logits"]) <= OUTPUT


def test_checkpoint_file(golden: Path, backend: str) -> None:
    """The file in the released layout: configuration inferred, logits reproduced."""
    case = Golden(golden, "")
    model = tk.load_official_checkpoint(golden / "trecvit" / "trecvit_tiny_ckpt.npz", min_radius=0.5)
    assert model.config == case.config
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        assert error(model(case.video), case["logits"]) <= OUTPUT
    for (name, ours), (_, theirs) in zip(
        model.state_dict().items(), case.model.state_dict().items(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_official_key_list(golden: Path) -> None:
    """All 370 keys and shapes of the official TRecViT-B, and 136,778,128 parameters."""
    listed = json.loads((golden / "trecvit" / "official_B_param_keys.json").read_text())
    with torch.device("meta"):
        model = tk.create_model("trecvit_base_k400")
    arrays = official.to_official(model.state_dict(), model.config)
    assert {name: list(array.shape) for name, array in arrays.items()} == listed["keys"]
    assert len(arrays) == listed["count"] == 370
    assert sum(p.numel() for p in model.parameters()) == listed["parameters"] == 136_778_128


def test_key_table_is_reversible(case: Golden) -> None:
    state = case.model.state_dict()
    back = official.from_official(official.to_official(state, case.config), case.config)
    assert set(back) == set(state) and all(torch.equal(back[name], state[name]) for name in state)


def test_last_norm_has_the_official_eps(golden: Path) -> None:
    """Tokens of the golden clips are too large to show it."""
    model = Golden(golden, "").model.double()
    x = 1e-3 * torch.randn(3, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    centred = x - x.mean(dim=-1, keepdim=True)
    expected = centred * (centred.square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt()
    expected = expected * model.encoder_norm.weight + model.encoder_norm.bias
    assert error(model.encoder_norm(x), expected) <= 1e-12
