"""DeepMind's own TRecViT in JAX as a peer, with our weights. It is used where it is installed and never required.

pip install git+https://github.com/google-deepmind/trecvit
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import Work
from trecvit_kernels import TRecViT
from trecvit_kernels.models import official


def problem(device: str) -> str:
    """Empty if the official model can run on the device, else the reason."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX would take most of the GPU's memory
    try:
        jax = importlib.import_module("jax")
        importlib.import_module("trecvit.modules")
    except ImportError as error:
        return f"{type(error).__name__}: {error}"
    wanted = {"cpu": "cpu", "cuda": "gpu"}[device]
    found = jax.default_backend()
    return "" if found == wanted else f"JAX runs on {found} here"


class Official:
    """The official model, compiled, on one video. Calls return when the work is done.

    Args:
        model: ours, of which weights and dtype are taken; pool, positions and recurrence as ``get_model`` has them.
        video: (B, T, 3, H, W).
    """

    def __init__(self, model: TRecViT, video: Tensor) -> None:
        self.jax = importlib.import_module("jax")
        dtype = str(video.dtype).removeprefix("torch.")
        self.module = _module(model, dtype)
        state = {name: tensor.detach().cpu().float() for name, tensor in model.state_dict().items()}
        self.parameters = _tree({
            name: self.jax.numpy.asarray(array.numpy(), dtype)
            for name, array in official.to_official(state, model.config).items()
        })  # fmt: skip
        self.video = self.jax.numpy.asarray(video.movedim(2, -1).cpu().float().numpy(), dtype)

    def forward(self) -> Work:
        """Logits (B, classes)."""
        run = self.jax.jit(self._logits)
        return lambda: self.jax.block_until_ready(run(self.parameters, self.video))

    def train(self, target: Tensor) -> Work:
        """(loss, gradients of all parameters) of the cross-entropy with classes ``target`` (B)."""
        classes = self.jax.numpy.asarray(target.cpu().numpy())

        def loss(parameters: Any, video: Any) -> Any:
            logits = self.jax.nn.log_softmax(self._logits(parameters, video).astype("float32"))
            return -self.jax.numpy.take_along_axis(logits, classes[:, None], axis=1).mean()

        run = self.jax.jit(self.jax.value_and_grad(loss))
        return lambda: self.jax.block_until_ready(run(self.parameters, self.video))

    def _logits(self, parameters: Any, video: Any) -> Any:
        return self.module.apply({"params": parameters}, video)["logits"]


def logits_like_ours(result: Any) -> Tensor:
    return torch.tensor(result.astype("float32").tolist())


def loss_like_ours(result: Any) -> Tensor:
    return torch.tensor(float(result[0]))


def _module(model: TRecViT, dtype: str) -> Any:
    """As the official ``get_model``, which knows only its own sizes."""
    modules = importlib.import_module("trecvit.modules")
    config, patch = model.config, (1, *model.config.patch_size)
    pool = {"cls": "tok", "mean": "gap"}[config.pool]
    return modules.TRecViT(
        tokenizer=modules.Tokenizer(
            width=config.width, patch_size=patch, posemb="learn", pool_type=pool, dtype=dtype
        ),
        encoder=modules.LRUViT(
            depth=config.depth,
            width=config.width,
            mlp_dim=config.mlp_dim,
            num_heads=config.num_heads,
            conv1d_temporal_width=config.conv1d_width,
            state_multiplier=config.lru_width // config.width,
            min_rad=config.min_radius,
            only_real=True,
            use_mlp=False,
            dtype=dtype,
        ),
        decoder=modules.ClassificationDecoder(
            num_classes=config.num_classes,
            width=config.width,
            rep_size=config.head_width,
            patch_size=patch,
            pool_type=pool,
        ),
        frames_per_clip=config.frames_per_clip,
    )


def _tree(flat: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries of names joined by "/"."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *folders, last = name.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = value
    return tree
