"""What huge pages change: the same rows in two processes, with and without PyTorch's switch.

PyTorch reads ``THP_MEM_ALLOC_ENABLE`` once, before its first allocation, so each setting needs its own
process. The processes run one after the other: what the machine does meanwhile is not shared between the two.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import results
from benchmarks.rows import Result

SWITCH = "THP_MEM_ALLOC_ENABLE"
SUITES = ("ops", "model", "streaming")  # those with floors


def compare(console: Console, suites: Sequence[str], quick: bool) -> None:
    """Run ``python -m benchmarks --floors-only`` on ``suites`` under both settings and print both."""
    arguments = [*suites, *(["--quick"] if quick else [])]
    without, with_pages = ({row.key: row for row in _run(arguments, value)} for value in ("0", "1"))
    table = Table(title=f"Without and with {SWITCH}=1", box=box.SIMPLE_HEAD)
    for heading in ("what", "ours", "with", "speed-up", "floor ratio", "with"):
        table.add_column(heading, justify="left" if heading == "what" else "right", overflow="fold")
    for key, before in without.items():
        after = with_pages.get(key)
        if after is None or None in (before.ours, after.ours, before.ratio, after.ratio):
            table.add_row(before.what, before.note or (after.note if after else "not measured"))
            continue
        assert before.ours and after.ours
        times = (
            f"{1e3 * before.ours:.2f} ms",
            f"{1e3 * after.ours:.2f} ms",
            f"{before.ours / after.ours:.2f}×",
        )
        table.add_row(before.what, *times, f"{before.ratio:.2f}", f"{after.ratio:.2f}")
    console.print(table)


def _run(arguments: Sequence[str], value: str) -> list[Result]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.json"
        command = [sys.executable, "-m", "benchmarks", "--floors-only", "--out", str(out), *arguments]
        environment = {**os.environ, SWITCH: value}
        subprocess.run(
            command, check=True, env=environment, cwd=results.ROOT.parent, stdout=subprocess.DEVNULL
        )
        return results.load(out)[0]
