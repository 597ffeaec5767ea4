"""What a run says: lines of JSON in a file, a progress bar or plain lines, TensorBoard where asked for."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

FILE = "log.jsonl"


class Log:
    """Writes ``log.jsonl`` (one object per line, each with ``step``) and shows progress on standard error.

    Args:
        run: folder. total: steps of the whole run. start: steps done already; lines of later steps are dropped, since
            these steps come again.
        tensorboard: also write event files below ``run/tensorboard``.

    Raises:
        ImportError: TensorBoard is asked for and not installed.
    """

    def __init__(self, run: Path, total: int, start: int, tensorboard: bool) -> None:
        self._writer: Any = None
        if tensorboard:
            check_tensorboard()
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=start + 1)
        path = run / FILE
        kept = [line for line in _lines(path) if json.loads(line)["step"] <= start] if start else []
        partial = path.with_name(FILE + ".partial")
        partial.write_text("".join(kept), encoding="utf-8")
        os.replace(partial, path)
        self._file = path.open("a", encoding="utf-8")
        self._total = total
        self._bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))
            self._task = self._bar.add_task("training", total=total, completed=start, note="")
            self._bar.start()

    def step(self, step: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def training(self, step: int, values: dict[str, float]) -> None:
        """Numbers of a training step."""
        self._write("train", step, values)
        note = f"loss {values['loss']:.4g}  {values['frames_per_second']:.0f} frames/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, note=note)
        else:
            self.say(f"step {step}/{self._total}  {note}  lr {values['learning_rate']:.3g}")

    def evaluation(self, step: int, measures: dict[str, float]) -> None:
        """Measures on the validation data."""
        self._write("validation", step, measures)
        self.say(f"step {step}/{self._total}  validation: {in_words(measures)}")

    def say(self, text: str) -> None:
        """A line for people."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def _write(self, kind: str, step: int, values: dict[str, float]) -> None:
        # NaN and infinity are no JSON: a measure that is not defined is null.
        plain = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, "kind": kind, **plain}) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{kind}/{name}", value, step)

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._bar is not None:
            self._bar.stop()
        if self._writer is not None:
            self._writer.close()


def check_tensorboard() -> None:
    """ImportError unless TensorBoard can be used."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "run.tensorboard needs the package tensorboard: pip install tensorboard", name="tensorboard"
        ) from error


def in_words(measures: dict[str, float]) -> str:
    """``name value`` pairs."""
    return "  ".join(f"{name} {value:.4g}" for name, value in measures.items())


def _lines(path: Path) -> list[str]:
    """Whole lines; a killed process may have left half of one."""
    if not path.is_file():
        return []
    return [
        line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")
    ]
