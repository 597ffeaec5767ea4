"""The command line: ``trecvit info | classify | stream | convert | demo | train | evaluate | export``.

Results go to standard output, notes and errors to standard error. An error is one line; status 2 means
arguments that cannot be right, 1 everything else. Progress bars appear on a terminal only.
"""

from __future__ import annotations

import contextlib
import enum
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trecvit_kernels import _training_commands

# PyAV and the model are imported inside the commands, so that --help and wrong arguments answer at once.
if TYPE_CHECKING:
    import torch

app = typer.Typer(
    help="TRecViT, the recurrent video transformer: classify videos, whole or frame by frame.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if sys.stdout.isatty() and sys.stderr.isatty() else None,
)


class Dtype(str, enum.Enum):
    """Arithmetic of the model."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float64 = "float64"


VideoArgument = Annotated[Path, typer.Argument(help="Video file.", metavar="VIDEO", show_default=False)]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        help="DeepMind's .npz, or a folder with model.safetensors and config.json.", show_default=False
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(help="Size for random weights, without --checkpoint; default: trecvit_base_k400."),
]
LabelsOption = Annotated[
    Path | None, typer.Option(help="Class names: one per line, or a JSON list or {index: name}.")
]
TopOption = Annotated[int, typer.Option("--top-k", min=1, help="Classes to show.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...; auto: a GPU if there is one.")]
DtypeOption = Annotated[Dtype, typer.Option(help="Arithmetic of the model.")]


def _cuda_build(native: Any) -> str:
    """For which GPUs the extension has CUDA kernels."""
    if not hasattr(native, "cuda"):
        return "none: built without nvcc"
    return f"for {native.cuda.architectures} (nvcc {native.cuda.toolkit})"


@app.command()
def info() -> None:
    """Show versions, backends (and why one is missing), instruction set and GPU."""
    import importlib.util
    import platform

    import torch

    import trecvit_kernels as tk

    with _clear_errors():
        rows = [
            ("trecvit-kernels", tk.__version__),
            ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
            ("torch", torch.__version__),
            ("triton", _version("triton") or "not installed"),
            ("PyAV", _version("av") or "not installed: pip install 'trecvit-kernels[video]'"),
        ]
        for name, status in tk.backends.available().items():
            rows.append((f"backend {name}", "available" if status.available else f"missing: {status.reason}"))
        if tk.backends.available()["native"].available:
            native = importlib.import_module("trecvit_kernels._native")
            try:
                isa = f"{native.isa()} (compiled: {', '.join(native.compiled_isas())})"
            except (ValueError, RuntimeError) as error:  # TRECVIT_ISA names none that runs here
                isa = str(error)
            rows.append(("instruction set", isa))
            rows.append(("CUDA kernels", _cuda_build(native)))
        else:
            rows.append(("instruction set", "none: the compiled extension is missing"))
            rows.append(("CUDA kernels", "none: the compiled extension is missing"))
        rows.append(("threads", str(torch.get_num_threads())))
        if torch.cuda.is_available():
            for index in range(torch.cuda.device_count()):
                properties = torch.cuda.get_device_properties(index)
                # AMD GPUs name their architecture, NVIDIA's count theirs.
                arch = getattr(properties, "gcnArchName", "") or f"sm_{properties.major}{properties.minor}"
                rows.append((f"GPU {index}", f"{properties.name} ({arch})"))
        else:
            rows.append(("GPU", "none"))
        for name, value in rows:
            typer.echo(f"{name + ':':<20}{value}")


@app.command()
def classify(
    video: VideoArgument,
    checkpoint: CheckpointOption = None,
    model: ModelOption = None,
    labels: LabelsOption = None,
    frames: Annotated[int, typer.Option(min=1, help="Frames to look at.")] = 32,
    stride: Annotated[
        int | None,
        typer.Option(
            min=1, help="Every STRIDE-th frame from the start; if not given, spread over the video."
        ),
    ] = None,
    top_k: TopOption = 5,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.float32,
) -> None:
    """Classify a video as a whole."""
    with _clear_errors():
        import torch

        from trecvit_kernels import video as video_io
        from trecvit_kernels._inference import prepare

        setup = prepare(video, checkpoint, model, labels, device, dtype.value)
        per_clip = setup.config.frames_per_clip or frames
        if frames % max(frames // per_clip, 1):
            raise typer.BadParameter(
                f"{frames} is no multiple of this model's {per_clip} frames per clip", param_hint="--frames"
            )
        sampling = {"sampling": "uniform"} if stride is None else {"sampling": "strided", "stride": stride}
        size = setup.config.image_size
        clip, decoding = _timed(lambda: video_io.read_clip(video, frames, size=size, **sampling))
        network = setup.load()
        setup.say_what_the_weights_are()
        with _busy("classifying", as_json), torch.inference_mode():
            pixels = clip.to(setup.device)
            result, running = _timed(lambda: network(pixels, return_dict=True)["probs"].cpu())
        best = setup.top(result[0], top_k)
        if as_json:
            _print_json(
                {
                    **setup.description(video),
                    "frames": frames,
                    "seconds": {"decoding": round(decoding, 4), "model": round(running, 4)},
                    "top": best,
                }
            )
            return
        typer.echo(f"{video}: {frames} frames of {size[0]} x {size[1]}, {running:.2f} s for the model")
        for rank, entry in enumerate(best, start=1):
            typer.echo(f"{rank:3}  {_in_words(entry)}")


@app.command()
def stream(
    video: VideoArgument,
    checkpoint: CheckpointOption = None,
    model: ModelOption = None,
    labels: LabelsOption = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many; default: the whole video.")
    ] = None,
    stride: Annotated[int, typer.Option(min=1, help="Take every STRIDE-th frame.")] = 1,
    every: Annotated[int, typer.Option(min=1, help="Print at every EVERY-th frame, and at the last.")] = 1,
    top_k: TopOption = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.float32,
) -> None:
    """Classify a video frame by frame: each line is about the video up to that frame."""
    with _clear_errors():
        from trecvit_kernels import video as video_io
        from trecvit_kernels._inference import prepare
        from trecvit_kernels.models import Stream

        setup = prepare(video, checkpoint, model, labels, device, dtype.value)
        pictures = video_io.iter_frames(video, setup.config.image_size, stride=stride, frames=frames)
        first = next(pictures)  # a video without frames is found out before the model is built
        network = setup.load()
        setup.say_what_the_weights_are()
        state = Stream(network)
        began, count, printed = time.perf_counter(), 0, 0

        def report(logits: torch.Tensor) -> None:
            rate = count / (time.perf_counter() - began)
            best = setup.top(logits[0].double().softmax(dim=-1).cpu(), top_k)
            if as_json:
                head = setup.description(video) if printed == 0 else {}
                _print_json({**head, "frame": count, "frames_per_second": round(rate, 3), "top": best})
            else:
                words = "  ".join(_in_words(entry) for entry in best)
                # print, not typer.echo: it knows how to get past a progress bar.
                print(f"frame {count:5}  {rate:7.2f} frames/s  {words}", flush=True)

        def all_frames() -> Iterator[torch.Tensor]:
            yield first
            yield from pictures

        try:
            with _busy("streaming", as_json):
                for picture in all_frames():
                    logits = state.push(picture.to(setup.device))
                    count += 1
                    if count % every == 0:
                        report(logits)
                        printed = count
        finally:  # a video that breaks off has still been seen so far
            if count > printed:
                report(logits)


@app.command()
def convert(
    npz: Annotated[Path, typer.Argument(help="DeepMind's checkpoint (.npz).", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Folder to make.", show_default=False)],
    image_size: Annotated[int | None, typer.Option(min=1, help="Interpolate positions to this size.")] = None,
    frames_per_clip: Annotated[int | None, typer.Option(min=1, help="Not in the file; default: any.")] = None,
) -> None:
    """Turn DeepMind's .npz checkpoint into a folder with model.safetensors and config.json."""
    with _clear_errors():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise FileExistsError(f"{out} exists already; give a new or an empty folder")
        from trecvit_kernels.models import convert as convert_checkpoint

        given = {"image_size": image_size, "frames_per_clip": frames_per_clip}
        config = convert_checkpoint(npz, out, **{k: v for k, v in given.items() if v is not None})
        typer.echo(
            f"{out}: {config.depth} blocks of width {config.width}, LRU width {config.lru_width},"
            f" {config.num_classes} classes"
        )


@app.command()
def demo(
    video: Annotated[
        Path | None, typer.Argument(help="Video file; default: a clip made of photographs.")
    ] = None,
    checkpoint: CheckpointOption = None,
    frames: Annotated[int, typer.Option(min=2, help="Frames to look at.")] = 32,
    output: Annotated[Path, typer.Option(help="Folder for the clip that is made.")] = Path("demo_output"),
) -> None:
    """From a video file to logits, whole and frame by frame, and what it costs next to ViViT-L."""
    with _clear_errors():
        from trecvit_kernels.demo import run

        run(video, checkpoint=checkpoint, frames=frames, output=output)


def _in_words(entry: dict[str, Any]) -> str:
    return f"{100 * entry['probability']:6.2f} %  {entry['label'] or 'class ' + str(entry['class'])}"


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False, allow_nan=False), flush=True)


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    return function(), time.perf_counter() - began


def _version(module: str) -> str | None:
    import importlib.metadata

    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(module)
    return None


@contextlib.contextmanager
def _busy(what: str, as_json: bool) -> Iterator[None]:
    """A moving bar while the block runs, if a person is looking."""
    if as_json or not (sys.stdout.isatty() and sys.stderr.isatty()):
        yield
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(what), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True, refresh_per_second=4) as progress:
        progress.add_task(what, total=None)
        yield


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    typer.echo(f"warning: {message}", err=True)


@contextlib.contextmanager
def _clear_errors() -> Iterator[None]:
    """One line on standard error instead of a traceback; warnings too."""
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            yield
        except (typer.Exit, typer.BadParameter, BrokenPipeError):
            raise
        except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
            message = " ".join(str(error).split()) or type(error).__name__
            typer.echo(f"error: {message}", err=True)
            raise typer.Exit(1) from error


_training_commands.add_to(app, _clear_errors)


def main() -> None:
    """Entry point of ``trecvit``."""
    app(prog_name="trecvit")
