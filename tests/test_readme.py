"""The README's Python does what it says."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch

import trecvit_kernels as tk

README = Path(__file__).resolve().parents[1] / "README.md"


def _blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_quick_start_is_short() -> None:
    code = [line for line in _blocks()[0].splitlines() if line.strip()]
    assert 5 <= len(code) <= 11


def test_blocks_run_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """As printed, but with a model of two layers in place of the full one."""
    original, asked = tk.create_model, []

    def small(name: str, **overrides: object) -> tk.TRecViT:
        asked.append(name)
        return original(name, depth=2, **overrides)

    monkeypatch.setattr(tk, "create_model", small)
    names: dict[str, object] = {}
    for block in _blocks():
        exec(compile(block, README.name, "exec"), names)
    assert asked == ["trecvit_base_k400"]
    logits, y, state = (names[name] for name in ("logits", "y", "state"))
    assert isinstance(logits, torch.Tensor) and logits.shape == (1, 400)
    assert isinstance(y, torch.Tensor) and y.shape == (2, 16, 196, 768)
    assert isinstance(state, torch.Tensor) and state.shape == (2, 196, 768)


def test_names_that_the_text_uses_exist() -> None:
    text = README.read_text(encoding="utf-8")
    for op in set(re.findall(r"`ops\.(\w+)`", text)):
        assert callable(getattr(tk.ops, op))
    for link in re.findall(r"\]\(((?:docs|benchmarks)/[^)]*|CITATION\.cff)\)", text):
        assert (README.parent / link).exists(), link


def test_support_table_lists_what_the_ops_offer() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in README.read_text(encoding="utf-8").splitlines()
        if re.match(r"\| (op \||`\w+`.*[✓–])", line)
    ]
    backends = [re.match(r"`(\w+)`", cell)[1] for cell in rows[0][1:]]
    offered = {
        re.match(r"`(\w+)`", op)[1]: {name for name, cell in zip(backends, cells, strict=True) if cell == "✓"}
        for op, *cells in rows[1:]
    }
    assert set(offered) == {"linear_scan", "gated_lru", "recurrent_mixer", "spatial_attention"}
    for name, found in offered.items():
        assert found == set(importlib.import_module(f"trecvit_kernels.ops.{name}.op").BACKENDS), name
