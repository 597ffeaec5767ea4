"""Result files: JSON with everything that has to be known about a run, replaced as a whole after every row.

A file holds

- ``command``, ``date`` (UTC), ``hardware`` (``hardware.describe``), ``rates`` (``hardware.rates``),
- ``kernels``: ``kernels_digest()`` of the checkout that was measured,
- ``multiplied_in_float32``: the 16-bit dtypes in which this CPU has no instructions for matrix products,
- ``settings``: device, dtypes, quick, tiny, floors_only,
- ``rows``: the ratios, each a ``rows.Result``, and ``records``: other values, each a ``rows.Record``.

Files from before the last four existed are read too.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import code
from benchmarks.rows import Record, Result

ROOT = Path(__file__).resolve().parent
RESULTS = ROOT / "results"
_HEADER = ("command", "date", "hardware", "rates")
# Of trecvit_kernels, what has no part in any measured time or count.
_UNMEASURED = (
    "__main__.py",
    "_inference.py",  # the command line's
    "_training_commands.py",
    "cli.py",
    "video.py",
    "demo.py",
    "tasks",
    "training",
)


def save(path: Path, results: Sequence[Result], run: dict[str, Any], records: Sequence[Record] = ()) -> None:
    """Write the file; missing folders are made. Whoever reads meanwhile sees the old file or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{**dataclasses.asdict(result), "met": result.met} for result in results]
    values = [dataclasses.asdict(record) for record in records]
    text = json.dumps({**run, "rows": rows, "records": values}, indent=1) + "\n"
    draft = path.with_name(
        f".{path.name}.{os.getpid()}"
    )  # in the same folder: only there replacing is atomic
    try:
        draft.write_text(text)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def load(path: Path) -> tuple[list[Result], list[Record], dict[str, Any]]:
    """Rows, records and the rest of the file: the inverse of ``save``. ValueError if it is no result file."""
    try:
        run = json.loads(path.read_text())
        rows, records = run.pop("rows"), run.pop("records", [])
        if missing := [name for name in _HEADER if name not in run]:
            raise KeyError(", ".join(missing))
        return (
            [Result(**{key: value for key, value in row.items() if key != "met"}) for row in rows],
            [Record(**record) for record in records],
            run,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no result file of python -m benchmarks: {error!r}") from error


def default_path(run: dict[str, Any]) -> Path:
    """benchmarks/results/<machine>-<date>.json; the machine is the GPU, or the CPU, its cores and instruction set."""
    machine = run["hardware"]
    cpu = "{cpu} {cores} cores {instruction_set}"
    words = machine["gpu"] if on_gpu(run) else cpu.format(**machine)
    name = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
    return RESULTS / f"{name}-{run['date']}.json"


def on_gpu(run: dict[str, Any]) -> bool:
    """Whether the run's work was done by a GPU."""
    return run.get("settings", {}).get("device") == "cuda"


def newest() -> Path:
    """The result file of the latest date; FileNotFoundError if there is none."""
    files = sorted(RESULTS.glob("*.json"), key=lambda path: (json.loads(path.read_text())["date"], path.name))
    if not files:
        raise FileNotFoundError("no result file in benchmarks/results: run python -m benchmarks --save")
    return files[-1]


def today(days: int = 0) -> str:
    """The date, in UTC, so many days from now."""
    date = datetime.datetime.now(datetime.timezone.utc).date()
    return (date + datetime.timedelta(days=days)).isoformat()


@functools.cache
def kernels_digest() -> str:
    """16 hexadecimal digits that change with any source that decides speed, memory or counted FLOPs.

    These are csrc/, CMakeLists.txt and trecvit_kernels without its command line, video files, tasks and training.
    Comments, docstrings and blank lines do not count (``benchmarks/code.py``). Results whose ``kernels`` is another
    value were measured with other kernels than those of this checkout.
    """
    top = ROOT.parent
    files = [path for path in (top / "csrc").rglob("*") if path.is_file()]
    package = top / "trecvit_kernels"
    files += [path for path in package.rglob("*.py") if path.relative_to(package).parts[0] not in _UNMEASURED]
    files.append(top / "CMakeLists.txt")
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.relative_to(top).as_posix()):
        content = code.of(path)
        digest.update(f"{path.relative_to(top).as_posix()} {len(content)}\n{content}".encode())
    return digest.hexdigest()[:16]
