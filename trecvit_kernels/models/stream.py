"""Frame-by-frame inference that owns its state, with one CUDA graph per frame on a GPU."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trecvit_kernels._checks import check_shape, check_tensor
from trecvit_kernels.models import pretrained
from trecvit_kernels.models.state import TRecViTState
from trecvit_kernels.models.trecvit import TRecViT
from trecvit_kernels.modules import temporal
from trecvit_kernels.modules.linear import PackedWeights

_FORMAT = "trecvit_kernels.stream.1"
_WARM_UP_STEPS = 3


class Stream:
    """Predictions for a video that arrives frame by frame; memory and time per frame are constant.

    (Not with ``temporal="attention"``, whose state grows up to its window, and without a window for ever.)

    The model runs without gradients, as it is: call ``model.eval()`` first if it has dropout. Weights may not
    be replaced or moved while the stream lives. On a CPU a bfloat16 model's linear weights are copied once into
    the layout that the products want, which takes as much memory as the weights.

    On a CUDA model the step is captured as a CUDA graph at the second frame and replayed from then on: static
    buffers for frame, state and logits, the state updated in place inside the graph. **This path has not been
    run on a GPU yet.**

    Args:
        model: the TRecViT to run. batch_size: number of streams that advance together.
        cuda_graph: "auto" captures on a CUDA model, False never does, True requires a CUDA model.

    Raises:
        TypeError: model is no TRecViT, or cuda_graph or batch_size of a wrong type.
        ValueError: batch_size < 1, cuda_graph=True on another device or with a temporal module that no graph can
            hold, or a model in training mode with dropout.
    """

    def __init__(self, model: TRecViT, batch_size: int = 1, cuda_graph: bool | str = "auto") -> None:
        if not isinstance(model, TRecViT):
            raise TypeError(f"Stream: model must be a TRecViT, got {type(model).__name__}")
        if not isinstance(cuda_graph, bool) and not (isinstance(cuda_graph, str) and cuda_graph == "auto"):
            raise TypeError(f'Stream: cuda_graph must be True, False or "auto", got {cuda_graph!r}')
        if model.training and model.config.dropout > 0:
            raise ValueError("Stream: model must be in evaluation mode, got a training model with dropout")
        device, choice = model.embedding.weight.device, temporal.CHOICES[model.config.temporal]
        if cuda_graph is True and not choice.cuda_graph:
            raise ValueError(
                f"Stream: cuda_graph=True needs a model whose step a graph can hold, got temporal ="
                f" {model.config.temporal!r}"
            )
        if cuda_graph is True and device.type != "cuda":
            raise ValueError(f"Stream: cuda_graph=True needs a model on a CUDA device, got one on {device}")
        self.model, self.batch_size = model, batch_size
        self._use_graph = cuda_graph is not False and device.type == "cuda" and choice.cuda_graph
        self._state = model.init_state(batch_size)
        rows = batch_size * model.config.tokens
        self._packed = PackedWeights(model, rows)
        self._frame_like: tuple[torch.Size, torch.dtype] | None = None
        self._graphed: _GraphedStep | None = None

    @property
    def frames(self) -> int:
        """Frames since the start or the last ``reset``."""
        return self._state.frames

    @property
    def state(self) -> TRecViTState:
        """A copy of the state."""
        return self._state.clone()

    @torch.no_grad()
    def push(self, frame: Tensor) -> Tensor:
        """Take one frame and return the logits (batch_size, num_classes) of the video so far.

        Args:
            frame: (batch_size, 3, H, W), or (3, H, W) if batch_size is 1; floating in [0, 1] or uint8 in [0,
                255], on the model's device. All frames of a stream have the shape and dtype of its first.

        Raises:
            TypeError, ValueError: a frame that does not fit; the state is then as before.
        """
        where = "Stream.push"
        check_tensor(where, "frame", frame)
        if frame.ndim == 3 and self.batch_size == 1:
            frame = frame.unsqueeze(0)
        self.model.check_video(where, "frame", frame, ndim=4)
        check_shape(where, "frame", frame, (self.batch_size, *frame.shape[1:]))
        like = (frame.shape, frame.dtype)
        if self._frame_like not in (None, like):
            raise ValueError(
                f"{where}: frame must be like the stream's first, {_describe(self._frame_like)},"
                f" got {_describe(like)}"
            )
        self._frame_like = like
        if not self._use_graph or self._state.frames == 0:
            with self._packed.used():
                logits, self._state = self.model.step(frame, self._state)
            return logits
        if self._graphed is None or not self._graphed.fits(frame):
            self._graphed = _GraphedStep(self.model, frame, self._state)
        logits, self._state = self._graphed(frame, self._state)
        return logits

    def reset(self) -> None:
        """Start a new video; its frames may have another dtype."""
        self._state = self.model.init_state(self.batch_size)
        self._frame_like = None

    def save(self, path: str | Path) -> None:
        """Write the state to a safetensors file, complete or not at all."""
        tensors = {name: tensor.contiguous() for name, tensor in self._state.tensors().items()}
        metadata = {
            "format": _FORMAT,
            "config": json.dumps(self.model.config.to_dict()),
            "weights": _fingerprint(self.model),
            "frames": str(self._state.frames),
        }
        pretrained.write_atomically(Path(path), safetensors.torch.save(tensors, metadata=metadata))

    def load(self, path: str | Path) -> None:
        """Go on from a saved state.

        Raises:
            FileNotFoundError: no such file. ValueError: a damaged file, or the state of another model
            (configuration or weights), batch size or dtype; the stream is then as before.
        """
        where = "Stream.load"
        if not Path(path).is_file():
            raise FileNotFoundError(f"{where}: path must be a saved state, found no file {path}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
        except SafetensorError as error:
            raise ValueError(f"{where}: {path} must be a complete safetensors file ({error})") from error
        if metadata.get("format") != _FORMAT:
            raise ValueError(
                f"{where}: {path} must be a state saved by Stream.save, got another safetensors file"
            )
        where = f"{where}: {path}"
        if missing := [name for name in ("config", "weights", "frames") if name not in metadata]:
            raise ValueError(f"{where} must have the metadata {', '.join(missing)}, found none of that name")
        config = pretrained.parse_config(f"{where}: config", metadata["config"])
        if not re.fullmatch("[0-9]{1,18}", metadata["frames"]):
            raise ValueError(f"{where}: frames must be an int of at least 0, got {metadata['frames']!r:.99}")
        tensors = pretrained.read_safetensors("Stream.load", path)
        device = self.model.embedding.weight.device
        try:
            state = TRecViTState.from_tensors(config, tensors, int(metadata["frames"])).to(device)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        state.check(where, self.model.state_like(), self.batch_size, device)
        if metadata["weights"] != _fingerprint(self.model):
            raise ValueError(f"{where} must be a state of this model, got one of a model with other weights")
        self._state, self._frame_like = state, None


class _GraphedStep:
    """One step after the first frame as a CUDA graph on static buffers.

    Frame 0 differs (it resets the recurrence), so the caller runs it eagerly. The state buffers are read and
    overwritten by the graph, by its warm-up too; a state that is not in them is copied in first.
    """

    def __init__(self, model: TRecViT, frame: Tensor, state: TRecViTState) -> None:
        self.model, self.frame, self.buffers = model, frame.clone(), state.clone()
        # The number of frames changes at every replay, so it is a tensor; float64 counts exactly.
        self.frames = torch.zeros((), dtype=torch.float64, device=frame.device)
        # Warm-up on a side stream: lazy initialisation and autotuning must not fall into the capture.
        side = torch.cuda.Stream(frame.device)
        side.wait_stream(torch.cuda.current_stream(frame.device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP_STEPS):
                self._step()
        torch.cuda.current_stream(frame.device).wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = self._step()

    def fits(self, frame: Tensor) -> bool:
        """Whether the graph was captured for such frames."""
        return self.frame.shape == frame.shape and self.frame.dtype == frame.dtype

    def __call__(self, frame: Tensor, state: TRecViTState) -> tuple[Tensor, TRecViTState]:
        if state.mean is not self.buffers.mean:
            self._fill(state)
        self.frame.copy_(frame)
        self.graph.replay()
        new = TRecViTState(state.config, self.buffers.layers, self.buffers.mean, state.frames + 1)
        return self.logits.clone(), new

    def _step(self) -> Tensor:
        self.frames += 1
        logits, layers, mean = self.model.advance(
            self.frame.unsqueeze(1), self.buffers.layers, self.buffers.mean, self.frames
        )
        for old, new in zip(self.buffers.layers, layers, strict=True):
            for buffer, tensor in zip(old, new, strict=True):
                buffer.copy_(tensor)
        self.buffers.mean.copy_(mean)
        return logits

    def _fill(self, state: TRecViTState) -> None:
        for name, buffer in self.buffers.tensors().items():
            buffer.copy_(state.tensors()[name])
        self.frames.fill_(state.frames)


def _describe(like: tuple[torch.Size, torch.dtype] | None) -> str:
    assert like is not None
    return f"shape {tuple(like[0])} {_name(like[1])}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _fingerprint(model: TRecViT) -> str:
    """Hash of the first values of every parameter: tells weights apart without reading all of them."""
    first = torch.cat([p.detach().flatten()[:16].float() for p in model.parameters()])
    return hashlib.sha256(first.cpu().numpy().tobytes()).hexdigest()
