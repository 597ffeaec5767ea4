"""Triton's interpreter, made several times faster.

As shipped it patches ``triton.language`` anew for every helper called, and broadcasts tiles to the shape they have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class _Launch:
    """The patches of a running launch, one per module that its kernel and helpers are written in."""

    def __init__(self) -> None:
        self.patches: dict[int, Any] = {}

    def restore(self) -> None:
        for patch in reversed(self.patches.values()):
            patch.restore()
        self.patches.clear()


class _Helper:
    def restore(self) -> None:
        pass


def patch_language_once_a_launch() -> None:
    """Functions of one module see the same ``tl``, so the first one's patch serves the others until the launch ends."""
    from triton.runtime import interpreter

    patch_language = interpreter._patch_lang
    launch, helper = _Launch(), _Helper()

    def patch_once(function: Callable[..., Any]) -> Any:
        outermost = not launch.patches
        module = id(function.__globals__)
        if module not in launch.patches:
            launch.patches[module] = patch_language(function)
        return launch if outermost else helper

    interpreter._patch_lang = patch_once


def leave_equal_shapes_alone() -> None:
    """Operands of one shape need no broadcast, nor the types that describe it."""
    from triton.language.semantic import TritonSemantic

    broadcast = TritonSemantic.broadcast_impl_value

    def broadcast_if_needed(self: Any, lhs: Any, rhs: Any) -> Any:
        if lhs.type.is_block() and rhs.type.is_block() and lhs.handle.data.shape == rhs.handle.data.shape:
            return lhs, rhs
        return broadcast(self, lhs, rhs)

    TritonSemantic.broadcast_impl_value = broadcast_if_needed
