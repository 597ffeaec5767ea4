"""Counts of models that no library here has, layer by layer, as their authors' configurations define them.

- X3D-L (arXiv 2004.04730): ``configs/Kinetics/X3D_L.yaml`` of facebookresearch/SlowFast. Published at 312 × 312.
- MViTv2-B (arXiv 2112.01526): ``configs/Kinetics/MVITv2_B_32x3.yaml`` there. torchvision could build it, but its wheels
  cannot be imported beside a CPU build of PyTorch; where they can, a test compares the two.
- VideoMamba-M (arXiv 2403.06977): ``videomamba_middle`` of OpenGVLab/VideoMamba, patches of 1x16x16.

The convention is that of ``trecvit_kernels.accounting``: 2 FLOPs per multiply-add of linear layers, convolutions and
attention, nothing for elementwise work (so nothing for Mamba's scan). A backward pass costs twice the forward pass,
less the gradient of the video, which nobody needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

_CLASSES = 400


@dataclass
class Count:
    """Parameters and multiply-adds of one model and input shape, added up layer by layer.

    Attributes:
        parameters: scalars that are trained.
        macs: multiply-adds of the forward pass of one video, by kind of layer.
        first: those of the layer that reads the video.
    """

    parameters: int = 0
    macs: dict[str, int] = field(default_factory=dict)
    first: int = 0

    @property
    def forward(self) -> int:
        """FLOPs of a forward pass."""
        return 2 * sum(self.macs.values())

    @property
    def training(self) -> int:
        """FLOPs of a forward and a backward pass."""
        return 3 * self.forward - 2 * self.first

    def product(self, kind: str, macs: int) -> None:
        """A product of two activations."""
        self.macs[kind] = self.macs.get(kind, 0) + macs

    def linear(self, kind: str, rows: int, inputs: int, outputs: int, bias: bool = True) -> None:
        self.product(kind, rows * inputs * outputs)
        self.parameters += inputs * outputs + bias * outputs

    def conv(
        self,
        kind: str,
        positions: int,
        taps: int,
        inputs: int,
        outputs: int,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        """A convolution with ``taps`` taps that is evaluated at ``positions`` places."""
        weights = taps * inputs * outputs // groups
        self.product(kind, positions * weights)
        self.parameters += weights + bias * outputs

    def norm(self, *widths: int) -> None:
        """Layer or batch normalisations: a scale and a shift per channel."""
        self.parameters += 2 * sum(widths)


def x3d_l(frames: int, image: int) -> Count:
    """X3D-L on (frames, image, image): depth factor 5, width factor 2, bottleneck factor 2.25."""
    return x3d(frames, image, depth=5.0)


def x3d(frames: int, image: int, depth: float) -> Count:
    """X3D of width factor 2 and bottleneck factor 2.25: M has a depth factor of 2.2, L of 5."""
    _check(frames, image)
    count, size, width = Count(), _halved(image, 2), 24
    count.conv("stem", frames * size**2, 9, 3, width)
    count.first = count.macs["stem"]
    count.conv("stem", frames * size**2, 5, width, width, groups=width)
    count.norm(width)
    for basis, out in ((1, 24), (2, 48), (5, 96), (3, 192)):
        inner = int(2.25 * out)
        for block in range(math.ceil(depth * basis)):
            before = frames * size**2
            if block == 0:
                size = _halved(size, 2)
                count.conv("shortcut", frames * size**2, 1, width, out)
                count.norm(out)
            after = frames * size**2
            count.conv("pointwise", before, 1, width, inner)
            count.conv("depthwise", after, 27, inner, inner, groups=inner)
            if block % 2 == 0:
                squeezed = _squeezed(inner)
                count.linear("squeeze-excitation", 1, inner, squeezed)
                count.linear("squeeze-excitation", 1, squeezed, inner)
            count.conv("pointwise", after, 1, inner, out)
            count.norm(inner, inner, out)
            width = out
    count.conv("head", frames * size**2, 1, width, inner)
    count.norm(inner)
    count.linear("head", 1, inner, 2048, bias=False)
    count.linear("head", 1, 2048, _CLASSES)
    return count


def _squeezed(width: int) -> int:
    """Width of X3D's squeeze-and-excitation: a sixteenth, in steps of 8, at most a tenth below."""
    exact = width / 16
    rounded = max(8, int(exact + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * exact else rounded


def mvit_v2_b(frames: int, image: int) -> Count:
    """MViTv2-B on (frames, image, image), frames even, image a multiple of 32: 24 layers, relative positions."""
    _check(frames, image, frame_step=2, image_step=32)
    count, width, heads, kv_stride = Count(), 96, 1, 8
    steps, size = _halved(frames, 2), _halved(image, 4)
    count.conv("patches", steps * size**2, 3 * 7 * 7, 3, width, bias=True)
    count.first = count.macs["patches"]
    count.parameters += width  # cls token
    for layer in range(24):
        grows = layer in (2, 5, 21)  # twice the width and heads, a quarter of the tokens
        out, heads = (2 * width, 2 * heads) if grows else (width, heads)
        kv_stride = kv_stride // 2 if grows else kv_stride
        head_width = out // heads
        tokens = steps * size**2 + 1
        q_size = _halved(size, 2) if grows else size
        kv_size = _halved(size, kv_stride)
        queries, keys = steps * q_size**2, steps * kv_size**2
        count.norm(width)
        count.linear("qkv", tokens, width, 3 * out)
        for positions in (queries, keys, keys):  # one kernel for all heads
            count.product("pooling", positions * 27 * out)
            count.parameters += 27 * head_width
            count.norm(head_width)
        count.product("attention", 2 * (queries + 1) * (keys + 1) * out)
        count.product("relative positions", queries * (2 * kv_size + steps) * out)
        relative = 2 * (2 * max(size // (2 if grows else 1), size // kv_stride) - 1) + 2 * steps - 1
        count.parameters += relative * head_width
        count.linear("projection", queries + 1, out, out)
        if grows:
            count.linear("shortcut", tokens, width, out)
        count.norm(out)
        count.linear("mlp", queries + 1, out, 4 * out)
        count.linear("mlp", queries + 1, 4 * out, out)
        width, size = out, q_size
    count.norm(width)
    count.linear("head", 1, width, _CLASSES)
    return count


def videomamba_m(frames: int, image: int) -> Count:
    """VideoMamba-M on (frames, image, image): 32 bidirectional Mamba layers of width 576."""
    _check(frames, image, image_step=16)
    count, width, inner, state = Count(), 576, 2 * 576, 16
    rank = width // 16
    patches = (image // 16) ** 2
    tokens = frames * patches + 1
    count.conv("patches", frames * patches, 16 * 16, 3, width, bias=True)
    count.first = count.macs["patches"]
    count.parameters += width * (1 + patches + 1 + frames)  # cls token, positions in space and in time
    for _ in range(32):
        count.parameters += width  # RMSNorm
        count.linear("in and out", tokens, width, 2 * inner, bias=False)
        for _ in ("forwards", "backwards"):
            count.conv("conv", tokens, 4, inner, inner, groups=inner, bias=True)
            count.linear("step and state", tokens, inner, rank + 2 * state, bias=False)
            count.linear("step and state", tokens, rank, inner)
            count.parameters += inner * state + inner  # A, D
        count.linear("in and out", tokens, inner, width, bias=False)
    count.parameters += width
    count.linear("head", 1, width, _CLASSES)
    return count


def _check(frames: int, image: int, frame_step: int = 1, image_step: int = 1) -> None:
    for name, value, step in (("frames", frames, frame_step), ("image", image, image_step)):
        if value < step or value % step:
            raise ValueError(f"{name} must be a positive multiple of {step}, got {value}")


def _halved(size: int, stride: int) -> int:
    """Length after a strided convolution whose padding is half its kernel."""
    return -(-size // stride)
