"""Memorisation: how well, and for how long, do temporal modules keep a frame?"""

from __future__ import annotations

import dataclasses
from typing import Any

from benchmarks.experiments import plots
from benchmarks.experiments.clips import Clips
from benchmarks.experiments.experiment import Claim, Experiment, Outcomes
from benchmarks.experiments.jobs import Job
from benchmarks.experiments.settings import MODULES, TRAINING_CLIPS, model, tables
from benchmarks.report.tables import Table

_COMPARED = ("gated LRU", "LSTM", "Conv1D", "factorised attention")
_K = (1, 4, 8, 14)
_TRAINED, _LONGER = 16, 48  # frames
_SIZE, _PATCH, _WIDTH, _STEPS, _TESTED = (16, 16), 4, 64, 500, 200
_SAME_FRAME, _SAME_K, _LAST = "48 frames, same frame", "48 frames, same k", "last frame repeated"


def jobs() -> list[Job]:
    """One training per module and k: frame 15 - k of 16 is asked for."""
    made = []
    longer = Clips("journey", "test", _TESTED, _LONGER, _SIZE)
    for module in _COMPARED:
        for k in _K:
            fields = {"width": _WIDTH, "lru_width": 2 * _WIDTH, **MODULES[module]}
            frame = _TRAINED - 1 - k
            task = {
                "name": "memorisation",
                "target": "fixed",
                "k": frame,
                "overrides": model(_SIZE[0], _PATCH, head=False, **fields),
            }
            made.append(
                Job(
                    f"{module}, k = {k}",
                    tables(task, _STEPS, learning_rate=3e-3, weight_decay=0.0),
                    Clips("journey", "train", TRAINING_CLIPS, _TRAINED, _SIZE),
                    Clips("journey", "test", _TESTED, _TRAINED, _SIZE),
                    {_SAME_FRAME: (longer, {}), _SAME_K: (longer, {"target": "before_last", "k": k})},
                )
            )
    return made


def _psnr(outcomes: Outcomes, module: str, k: int, where: str = "", measure: str = "psnr") -> float:
    outcome = outcomes[f"{module}, k = {k}"]
    return (outcome.more[where] if where else outcome.measures)[measure]


def claims(outcomes: Outcomes) -> list[Claim]:
    """The gated LRU remembers; over more frames than in training better than attention, as in the paper."""
    far, ours = _K[-1], "gated LRU"
    kept, last = _psnr(outcomes, ours, far), _psnr(outcomes, ours, far, measure="psnr_of_last_frame")
    later = _psnr(outcomes, ours, far, _SAME_FRAME)
    rivals = {module: _psnr(outcomes, module, far, _SAME_FRAME) for module in _COMPARED[1:]}
    best = max(rivals, key=lambda module: rivals[module])
    blind = _psnr(outcomes, "Conv1D", far)
    above = {k: _psnr(outcomes, ours, k) - _psnr(outcomes, ours, k, measure="psnr_of_last_frame") for k in _K}
    least = min(above, key=lambda k: above[k])
    return [
        Claim(
            f"{_TRAINED} frames: gated LRU above repeating the last frame at every k",
            f"least at k = {least}: {above[least]:+.1f} dB",
            above[least] > 0,
        ),
        Claim(
            f"frame {_TRAINED - 1 - far} of 16 (k = {far}): gated LRU 3 dB or more above repeating the last frame",
            f"{kept:.1f} against {last:.1f} dB",
            kept >= last + 3,
        ),
        Claim(
            f"beyond the 6 frames that Conv1D sees (k = {far}): gated LRU above Conv1D",
            f"{kept:.1f} against {blind:.1f} dB",
            kept > blind,
        ),
        Claim(
            "the same frame after 48 frames, trained on 16: gated LRU keeps it best (paper: 26.4 dB, ViViT 15.1)",
            f"{later:.1f} dB; {best} {rivals[best]:.1f} dB",
            later > rivals[best],
        ),
    ]


def table(outcomes: Outcomes) -> Table:
    """PSNR over k, a row per module and test."""
    rows = []
    for where, words in (("", "16 frames"), (_SAME_FRAME, _SAME_FRAME), (_SAME_K, _SAME_K)):
        for module in _COMPARED:
            rows.append((words, module, *(f"{_psnr(outcomes, module, k, where):.1f}" for k in _K)))
        repeated = (_psnr(outcomes, _COMPARED[0], k, where, "psnr_of_last_frame") for k in _K)
        rows.append((words, _LAST, *(f"{value:.1f}" for value in repeated)))
    headings = ("tested on", "", *(f"k = {k}" for k in _K))
    sizes = ", ".join(
        f"{module} {outcomes[f'{module}, k = {_K[0]}'].parameters / 1e3:.0f} k" for module in _COMPARED
    )
    return Table("PSNR in dB on test clips", headings, rows, text=(0, 1), notes=[f"Parameters: {sizes}."])


def draw(plt: Any, theme: Any, outcomes: Outcomes) -> Any:
    """PSNR over k, a panel per test."""
    panels = []
    tests = {
        "": "16 frames, as in training",
        _SAME_FRAME: f"{_SAME_FRAME} (15 − k)",
        _SAME_K: f"{_SAME_K} (47 − k)",
    }
    for where, title in tests.items():
        lines = {module: (_K, [_psnr(outcomes, module, k, where) for k in _K]) for module in _COMPARED}
        lines[_LAST] = (_K, [_psnr(outcomes, _COMPARED[0], k, where, "psnr_of_last_frame") for k in _K])
        panels.append(plots.Panel(title, lines, "k", "PSNR, dB", ticks=_K))
    every = [value for panel in panels for _, values in panel.lines.values() for value in values]
    limits = min(every) - 0.5, max(every) + 0.5  # of all panels, which are to be compared
    panels = [dataclasses.replace(panel, limits=limits) for panel in panels]
    return plots.curves(plt, theme, panels, order=(*_COMPARED, "", _LAST), dashed=(_LAST,))


EXPERIMENT = Experiment(
    name="memorisation",
    title="Memorisation against k",
    about=(
        "A camera walks over a photograph, turning and zooming (16 × 16 pixels, patches of 4). From the tokens of the"
        f" last frame the model draws the k-th before it, always of {_TRAINED} frames in training, which is frame"
        f" 15 − k; one model per module and k. On {_LONGER} frames “the k-th before the last” and “the frame that it"
        " was in training” are different frames, and a model trained on one length may have learned either; each is"
        " tested on both. The second is what the paper does."
    ),
    jobs=jobs,
    claims=claims,
    table=table,
    draw=draw,
    caption="PSNR over k, for four temporal modules, on clips as long as in training and three times as long",
)
