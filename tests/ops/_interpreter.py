"""Triton's interpreter, made several times faster.

As shipped it patches ``triton.language`` anew for every helper called, broadcasts tiles to the shape they have and
describes the type of every tile from scratch. What a kernel computes stays as it is.
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


def broadcast_with_numpy() -> None:
    """Operands of one shape need no broadcast; a number and a row become a tile without being copied."""
    import numpy as np
    from triton.language.semantic import TritonSemantic
    from triton.runtime.interpreter import TensorHandle

    def shape_of(value: Any) -> tuple[int, ...]:
        return tuple(value.type.shape) if value.type.is_block() else ()

    def spread(self: Any, value: Any, shape: tuple[int, ...], tile: Any) -> Any:
        data = np.broadcast_to(value.handle.data, shape)
        return self.tensor(TensorHandle(data, value.handle.dtype), tile.with_element_ty(value.type.scalar))

    def broadcast_impl_value(self: Any, lhs: Any, rhs: Any) -> Any:
        from_left, from_right = shape_of(lhs), shape_of(rhs)
        if from_left == from_right:
            return lhs, rhs
        shape = np.broadcast_shapes(from_left, from_right)
        if from_left == shape:
            return lhs, spread(self, rhs, shape, lhs.type)
        if from_right == shape:
            return spread(self, lhs, shape, rhs.type), rhs
        tile = type(lhs.type)(lhs.type.scalar, list(shape))
        return spread(self, lhs, shape, tile), spread(self, rhs, shape, tile)

    TritonSemantic.broadcast_impl_value = broadcast_impl_value


def describe_types_once() -> None:
    """A tile's shape as Triton's tuple, the number of its elements and numpy's type for it depend on its type alone."""
    from triton.language import core
    from triton.runtime import interpreter

    describe = core.tensor.__init__
    tile_type, numpy_type = core.block_type.with_element_ty, interpreter._get_np_dtype
    shapes: dict[tuple[int, ...], tuple[Any, Any]] = {}
    tiles: dict[tuple[Any, tuple[int, ...]], Any] = {}
    numpy_types: dict[Any, Any] = {}

    def described(self: Any, handle: Any, type: Any) -> None:
        shape = tuple(type.shape) if type.is_block() else ()
        if shape not in shapes:
            describe(self, handle, type)
            shapes[shape] = self.shape, self.numel
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = shapes[shape]

    def is_number(scalar: Any) -> bool:
        return type(scalar) is core.dtype  # pointers have no hash

    def with_element_ty(self: Any, scalar: Any) -> Any:
        if not is_number(scalar):
            return tile_type(self, scalar)
        key = scalar, tuple(self.shape)
        if key not in tiles:
            tiles[key] = tile_type(self, scalar)
        return tiles[key]

    def get_np_dtype(tt_dtype: Any) -> Any:
        scalar = tt_dtype.scalar
        if not is_number(scalar):
            return numpy_type(tt_dtype)
        if scalar not in numpy_types:
            numpy_types[scalar] = numpy_type(scalar)
        return numpy_types[scalar]

    core.tensor.__init__ = described
    core.block_type.with_element_ty = with_element_ty
    interpreter._get_np_dtype = get_np_dtype
