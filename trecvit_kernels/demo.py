"""``trecvit demo``: a video file to logits, whole and frame by frame, and the price next to ViViT-L.

Every number that is printed is computed by the run that prints it.
"""

from __future__ import annotations

import itertools
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from trecvit_kernels import accounting, backends
from trecvit_kernels import video as video_io
from trecvit_kernels._inference import DEFAULT_MODEL, RANDOM_WEIGHTS, open_checkpoint
from trecvit_kernels.models import SIZES, Stream, TRecViT, create_model
from trecvit_kernels.ops.recurrent_mixer import op as recurrent_mixer

GIB = 2**30
# Photographs in scikit-image's own package, no download: (name, window at the start and at the end), a window
# being (vertical and horizontal centre, height), all in shares of the photograph's height or width.
_SHOTS = (
    ("astronaut", (0.40, 0.45, 0.95), (0.25, 0.45, 0.50)),
    ("coffee", (0.50, 0.35, 0.80), (0.50, 0.60, 0.55)),
    ("chelsea", (0.50, 0.60, 0.95), (0.40, 0.50, 0.60)),
    ("rocket", (0.30, 0.50, 0.50), (0.65, 0.55, 0.65)),
)
_CLIP_SIZE = (240, 320)
# Both ways do the same float32 arithmetic in another order: some hundred roundings of 6e-8 on a path.
_TOLERANCE = 1e-5


def run(
    video: Path | None = None,
    *,
    checkpoint: Path | None = None,
    frames: int = 32,
    output: Path = Path("demo_output"),
) -> None:
    """Run the demonstration and print it.

    Args:
        video: a video file; None: a clip is made of photographs and put into ``output``.
        checkpoint: .npz or ``save_pretrained`` folder; None: TRecViT-B with random weights.
        frames: how many to look at, from the start, at least 2; all if the video has fewer.
        output: folder for the clip; existing files are left alone.

    Raises:
        ImportError: an extra is missing. OSError, ValueError: a video or checkpoint that cannot be used.
        RuntimeError: whole and frame-by-frame results differ by more than rounding explains.
    """
    console = Console(soft_wrap=True, highlight=False)
    if checkpoint is None:
        config, build = SIZES[DEFAULT_MODEL], lambda: create_model(DEFAULT_MODEL)
    else:
        config, build = open_checkpoint(checkpoint)
    if config.num_classes == 0:
        raise ValueError(f"{checkpoint} has no classifier: it cannot name a class")
    if config.frames_per_clip is not None and frames >= 2 * config.frames_per_clip:
        raise ValueError(
            f"a stream is one clip, {frames} frames are several clips of {config.frames_per_clip}: use fewer"
        )

    if video is None:
        video = _free_name(output)
        video_io.write_video(video, make_clip(frames), fps=8)
        console.print(f"Made {video} out of {len(_SHOTS)} photographs.")
    pictures = list(itertools.islice(video_io.iter_frames(video, config.image_size), frames))
    frames = len(pictures)
    clip = torch.stack(pictures, dim=1)
    height, width = config.image_size
    console.print(f"Decoded {frames} frames of {video}, scaled and cropped to {height} x {width}.")

    torch.manual_seed(0)
    model = build().eval()
    where = f"{torch.get_num_threads()} threads, {_backend()}"
    name = str(checkpoint) if checkpoint is not None else f"{DEFAULT_MODEL} (TRecViT-B as released)"
    console.print(f"Model: {name}, {accounting.parameters(model):,} parameters, float32, CPU, {where}.")
    if checkpoint is None:
        console.print(f"[bold]Note:[/bold] {RANDOM_WEIGHTS}; all else holds for any weights.")

    _compare(console, model, video, clip)
    console.print(f"Peak memory of this process up to here: {_peak_memory()}.")
    console.print()
    console.print(price_table(console), soft_wrap=False)


def _compare(console: Console, model: TRecViT, video: Path, clip: Tensor) -> None:
    """The clip at once and frame by frame: speed of both, agreement, and the prediction."""
    frames = clip.shape[1]
    with torch.inference_mode():
        began = time.perf_counter()
        whole = model(clip)[0]
        seconds = time.perf_counter() - began
    console.print(f"Whole clip: {seconds:.2f} s, {frames / seconds:.2f} frames/s.")

    stream = Stream(model)
    began = time.perf_counter()
    for picture in video_io.iter_frames(video, model.config.image_size, frames=frames):
        logits = stream.push(picture)
    seconds = time.perf_counter() - began
    size = stream.state.nbytes / 1e6
    console.print(
        f"Frame by frame (decoding again): {seconds:.2f} s, {frames / seconds:.2f} frames/s,"
        f" with a state of {size:.1f} MB however long the video is."
    )

    difference = (logits[0] - whole).abs().max().item()
    bound = _TOLERANCE * max(1.0, whole.abs().max().item())
    console.print(f"Largest difference of the logits: {difference:.1e} (must stay below {bound:.1e}).")
    if not difference <= bound:
        raise RuntimeError(
            f"whole clip and frame by frame differ by {difference:.1e}, allowed are {bound:.1e}"
        )
    best, classes = whole.double().softmax(dim=-1).topk(min(5, whole.numel()))
    answers = ", ".join(f"{index} ({100 * p:.2f} %)" for p, index in zip(best.tolist(), classes.tolist()))
    console.print(f"Most probable classes: {answers}.")


def price_table(console: Console | None = None) -> Table:
    """What 32 frames of 224 x 224 cost in TRecViT-B and in ViViT-L, float32, batch 1, 400 classes.

    FLOPs count 2 per multiply-add; memory is the peak of one training step without optimizer, under fake
    tensors (see ``accounting``). ``console`` shows which model is at work, on a terminal.
    """
    shape = (1, 32, 3, 224, 224)
    busy = (console or Console(quiet=True)).status
    rows: list[tuple[str, accounting.Costs, accounting.Costs | None]] = []
    for name, title in (("trecvit_base", "TRecViT-B, paper"), (DEFAULT_MODEL, "TRecViT-B, released")):
        with busy(f"measuring {title} under fake tensors"):
            rows.append((title, accounting.costs(partial(create_model, name), shape), None))
    missing = None
    for depth in (1, 2):
        title = f"ViViT-L, {depth}x16x16"
        build = partial(accounting.vivit_l, tubelet_frames=depth)
        try:
            with busy(f"measuring {title} under fake tensors"):
                fused = accounting.costs(partial(build, attention="sdpa"), shape)
                eager = accounting.costs(partial(build, attention="eager"), shape)
        except ImportError as error:
            missing = f"ViViT-L is missing: {error}"
            break
        rows.append((title, fused, eager))

    plain = console is None or not console.is_terminal
    table = Table(
        title="32 x 224 x 224, float32; training memory by kind of attention",
        caption=missing,
        box=box.ASCII if plain else box.ROUNDED,
    )
    table.add_column("", no_wrap=True)
    for heading in ("params\nM", "forward\nTFLOP", "training\nTFLOP"):
        table.add_column(heading, justify="right")
    for attention in ("fused", "eager"):
        table.add_column(f"{attention}\nGiB", justify="right")
    for title, costs, eager_costs in rows:
        # A fused backward computes the scores twice; papers count the plain one.
        training = (eager_costs or costs).flops_training
        table.add_row(
            title,
            f"{costs.parameters / 1e6:.1f}",
            f"{costs.flops_forward / 1e12:.2f}",
            f"{training / 1e12:.2f}",
            f"{costs.training.total / GIB:.1f}",
            f"{eager_costs.training.total / GIB:.1f}" if eager_costs is not None else "",
        )
    return table


def make_clip(frames: int) -> Tensor:
    """A clip (frames, 3, 240, 320), uint8, that pans and zooms over photographs of scikit-image.

    Raises ImportError if scikit-image is not installed.
    """
    try:
        import skimage.data
    except ImportError as error:
        raise ImportError(
            "the demo clip is made of photographs in scikit-image: install that, or give a video",
            name="skimage",
        ) from error
    shots = []
    for index, (name, begin, end) in enumerate(_SHOTS):
        count = frames * (index + 1) // len(_SHOTS) - frames * index // len(_SHOTS)
        photograph = torch.from_numpy(getattr(skimage.data, name)()[..., :3].copy()).permute(2, 0, 1).float()
        for step in range(count):
            share = step / max(count - 1, 1)
            window = [a + (b - a) * share for a, b in zip(begin, end)]
            shots.append(_look(photograph, *window))
    return torch.stack(shots)


def _look(photograph: Tensor, down: float, across: float, share: float) -> Tensor:
    """The window of a photograph (3, H, W) centred at (down, across), ``share`` of its height, as a frame."""
    rows, columns = photograph.shape[1:]
    height = share * min(rows, columns * _CLIP_SIZE[0] / _CLIP_SIZE[1])
    width = height * _CLIP_SIZE[1] / _CLIP_SIZE[0]
    top = min(max(down * rows - height / 2, 0), rows - height)
    left = min(max(across * columns - width / 2, 0), columns - width)
    window = photograph[:, int(top) : int(top + height), int(left) : int(left + width)]
    frame = F.interpolate(window[None], _CLIP_SIZE, mode="bilinear", align_corners=False, antialias=True)
    return frame[0].round().clamp(0, 255).to(torch.uint8)


def _free_name(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    names = itertools.chain(["clip.mp4"], (f"clip-{number}.mp4" for number in itertools.count(2)))
    return next(path for name in names if not (path := folder / name).exists())


def _backend() -> str:
    return f"{backends.select(recurrent_mixer.NAME, None, 'cpu', recurrent_mixer.BACKENDS)} backend"


def _peak_memory() -> str:
    try:
        import resource
    except ImportError:  # Windows
        return "unknown on this system"
    peak: Any = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return f"{peak * unit / GIB:.2f} GiB"
