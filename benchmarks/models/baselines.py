"""The models that TRecViT is compared with: by label, how to build each, or how to count it.

Every builder takes the number of frames and the image size, so that one architecture can be measured at any size;
its video is (B, frames, 3, image, image), its result the logits (B, 400). Weights are random. Widths and depths are
those of the papers:

- ViViT (arXiv 2103.15691), tables 1 and 2: B is 12 layers of width 768, L is 24 of 1024. Model 1 attends to all
  tokens; the factorised encoder (model 2) has 4 temporal layers; factorised self-attention is model 3.
- TimeSformer-L (arXiv 2102.05095): divided attention, ViT-B's width and depth; the L means 96 frames there.
- VideoMAE-L (arXiv 2203.12602): the encoder as it is fine-tuned, ViT-L, tubelets of 2 frames, mean pooling.
- MViTv2-B, X3D-L, VideoMamba-M: see ``analytic.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks.models import analytic
from trecvit_kernels import accounting

CLASSES = 400

# Label -> name for trecvit_kernels.create_model.
TRECVIT = {
    "TRecViT-B": "trecvit_base",
    "TRecViT-B, doubled LRU": "trecvit_base_k400",
    "TRecViT-S": "trecvit_small",
    "TRecViT-L": "trecvit_large",
}


class Build(Protocol):
    """Makes a model for videos (B, frames, 3, image, image); attention is "sdpa" (fused) or "eager"."""

    def __call__(self, frames: int, image: int = 224, attention: str = "sdpa") -> nn.Module: ...


@dataclass(frozen=True)
class Baseline:
    """A model to compare with.

    Attributes:
        label: as in the results files.
        build: None where no library has the model; then there is a count only. It raises ImportError if
            transformers is not installed, ValueError for sizes that the model cannot have.
        analytic: (frames, image) -> its parameters and FLOPs, for models without ``build``.
        note: what a reader of the table has to know.
        frame_step: the number of frames must be a multiple of it.
    """

    label: str
    build: Build | None = None
    analytic: Callable[[int, int], analytic.Count] | None = None
    note: str = ""
    frame_step: int = 1


class Logits(nn.Module):
    """A classifier of transformers that returns its logits and nothing else."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, video: Tensor) -> Tensor:
        return self.model(video).logits


class FactorisedEncoder(nn.Module):
    """ViViT's model 2: every frame by itself through the spatial layers, then the frames' cls tokens."""

    def __init__(self, config: Any, temporal_layers: int = 4) -> None:
        super().__init__()
        vivit = _vivit_parts()
        self.patches = vivit.VivitTubeletEmbeddings(config)
        self.frames, self.tokens = _grid(config)
        width = config.hidden_size
        self.spatial_cls = nn.Parameter(torch.zeros(1, 1, width))
        self.spatial_positions = nn.Parameter(torch.zeros(1, self.tokens + 1, width))
        self.temporal_cls = nn.Parameter(torch.zeros(1, 1, width))
        self.temporal_positions = nn.Parameter(torch.zeros(1, self.frames + 1, width))
        self.spatial = nn.ModuleList(vivit.VivitLayer(config) for _ in range(config.num_hidden_layers))
        self.temporal = nn.ModuleList(vivit.VivitLayer(config) for _ in range(temporal_layers))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.classifier = nn.Linear(width, config.num_labels)

    def forward(self, video: Tensor) -> Tensor:
        x = self.patches(video).unflatten(1, (self.frames, self.tokens)).flatten(0, 1)
        x = torch.cat([self.spatial_cls.expand(len(x), -1, -1), x], dim=1) + self.spatial_positions
        for layer in self.spatial:
            x = _first(layer(x))
        x = x[:, 0].unflatten(0, (-1, self.frames))
        x = torch.cat([self.temporal_cls.expand(len(x), -1, -1), x], dim=1) + self.temporal_positions
        for layer in self.temporal:
            x = _first(layer(x))
        return self.classifier(self.norm(x[:, 0]))


class FactorisedSelfAttention(nn.Module):
    """ViViT's model 3: in each layer attention over space, attention over time, MLP; no cls token."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        vivit = _vivit_parts()
        self.patches = vivit.VivitTubeletEmbeddings(config)
        self.frames, self.tokens = _grid(config)
        width, depth = config.hidden_size, config.num_hidden_layers
        self.positions = nn.Parameter(torch.zeros(1, self.frames * self.tokens, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=config.layer_norm_eps) for _ in range(depth))
        self.spatial = nn.ModuleList(vivit.VivitAttention(config) for _ in range(depth))
        # A ViViT layer over the frames of one place; its MLP acts on single tokens, so any layout will do.
        self.temporal = nn.ModuleList(vivit.VivitLayer(config) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.classifier = nn.Linear(width, config.num_labels)

    def forward(self, video: Tensor) -> Tensor:
        batch = len(video)
        x = (self.patches(video) + self.positions).unflatten(1, (self.frames, self.tokens)).flatten(0, 1)
        for norm, spatial, temporal in zip(self.norms, self.spatial, self.temporal):
            x = x + _first(spatial(norm(x)))
            x = x.unflatten(0, (batch, self.frames)).transpose(1, 2).flatten(0, 1)  # (B N, T, D)
            x = _first(temporal(x))
            x = x.unflatten(0, (batch, self.tokens)).transpose(1, 2).flatten(0, 1)  # (B T, N, D)
        x = self.norm(x).unflatten(0, (batch, self.frames)).mean(dim=(1, 2))
        return self.classifier(x)


def _vivit(
    size: str,
    tubelet: int,
    kind: Callable[[Any], nn.Module],
    frames: int,
    image: int = 224,
    attention: str = "sdpa",
) -> nn.Module:
    _check(frames, image, attention, step=tubelet)
    config = accounting.vivit_config(
        size,
        frames=frames,
        tubelet_frames=tubelet,
        num_classes=CLASSES,
        attention=attention,
        image_size=image,
    )
    return kind(config)


def full_attention(config: Any) -> nn.Module:
    """ViViT's model 1: every token attends to all tokens of the video."""
    return Logits(_transformers().VivitForVideoClassification(config))


def _timesformer(frames: int, image: int = 224, attention: str = "sdpa") -> nn.Module:
    _check(frames, image, attention)
    transformers = _transformers()
    config = transformers.TimesformerConfig(num_frames=frames, image_size=image, num_labels=CLASSES)
    return Logits(transformers.TimesformerForVideoClassification(config))


def _videomae(frames: int, image: int = 224, attention: str = "sdpa") -> nn.Module:
    _check(frames, image, attention, step=2)
    transformers = _transformers()
    # Its table of positions comes from a loop in Python, seconds for long videos, and is neither parameter nor
    # buffer, so that it would stay behind on the CPU: built for 2 frames, and the table replaced.
    config = transformers.VideoMAEConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        num_frames=2,
        image_size=image,
        num_labels=CLASSES,
        attn_implementation=attention,
    )
    model = transformers.VideoMAEForVideoClassification(config)
    embeddings = model.videomae.embeddings
    tokens = (image // 16) ** 2 * frames // 2
    del embeddings.position_embeddings
    embeddings.register_buffer("position_embeddings", sincos(tokens, 1024), persistent=False)
    model.config.num_frames = frames
    return Logits(model)


def sincos(positions: int, width: int) -> Tensor:
    """Table (1, positions, width): sine and cosine in turn, wavelengths from 2π to 10,000 · 2π."""
    rates = 10_000.0 ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(positions)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[None]


def _check(frames: int, image: int, attention: str, step: int = 1) -> None:
    if frames < step or frames % step:
        raise ValueError(f"frames must be a positive multiple of {step}, got {frames}")
    if image < 16 or image % 16:
        raise ValueError(f"image must be a positive multiple of 16, got {image}")
    if attention not in ("sdpa", "eager"):
        raise ValueError(f'attention must be "sdpa" or "eager", got {attention!r}')


def _grid(config: Any) -> tuple[int, int]:
    """Steps of time, and tokens of each."""
    return config.num_frames // config.tubelet_size[0], (config.image_size // config.tubelet_size[1]) ** 2


def _first(result: Any) -> Tensor:
    """Layers of transformers return the tensor, or a tuple that begins with it."""
    return result[0] if isinstance(result, tuple) else result


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "the baselines come from transformers: pip install 'trecvit-kernels[benchmarks]'",
            name="transformers",
        ) from error
    return transformers


def _vivit_parts() -> Any:
    _transformers()
    from transformers.models.vivit import modeling_vivit

    return modeling_vivit


def _vivit_baseline(
    size: str,
    tubelet: int,
    what: str = "",
    kind: Callable[[Any], nn.Module] = full_attention,
    note: str = "",
) -> Baseline:
    label = f"ViViT-{size}{what} {tubelet}x16x16"
    return Baseline(label, build=partial(_vivit, size, tubelet, kind), note=note, frame_step=tubelet)


_FACTORISED = "counted; ViViT's model {}, of transformers' layers"
_ALL = (
    _vivit_baseline("L", 1),
    _vivit_baseline("L", 2),
    _vivit_baseline("B", 1),
    _vivit_baseline("B", 2),
    _vivit_baseline("L", 1, " factorised encoder", FactorisedEncoder, _FACTORISED.format(2)),
    _vivit_baseline("L", 1, " factorised self-attention", FactorisedSelfAttention, _FACTORISED.format(3)),
    Baseline("TimeSformer-L", build=_timesformer, note="counted; published with 96 frames"),
    Baseline("VideoMAE-L", build=_videomae, note="counted; as fine-tuned, tubelets of 2x16x16", frame_step=2),
    Baseline("MViTv2-B", analytic=analytic.mvit_v2_b, note="analytic count", frame_step=2),
    Baseline("X3D-L", analytic=analytic.x3d_l, note="analytic count; published with 16 frames of 312²"),
    Baseline(
        "VideoMamba-M",
        analytic=analytic.videomamba_m,
        note="analytic count, without the scan's elementwise work",
    ),
)
BASELINES: dict[str, Baseline] = {baseline.label: baseline for baseline in _ALL}
