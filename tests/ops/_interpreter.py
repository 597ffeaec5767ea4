"""Triton's interpreter, made several times faster, and stricter about integers.

As shipped it patches ``triton.language`` anew for every helper called, broadcasts tiles to the shape they have,
describes the type of every tile from scratch and settles anew what type every two operands have in common. What a
kernel computes stays as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from numbers import Number
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


def _as_tiles(
    self: Any, lhs: Any, rhs: Any, spread: Callable[[Any, tuple[int, ...]], Any]
) -> tuple[Any, Any]:
    """Both operands with the type of their combination; ``spread`` gives a handle another shape."""
    from_left = lhs.type.shape if lhs.type.is_block() else ()
    from_right = rhs.type.shape if rhs.type.is_block() else ()
    if from_left == from_right:
        return lhs, rhs
    shape = _common_shape(from_left, from_right)
    tile = lhs.type if from_left == shape else rhs.type
    if from_right != shape != from_left:
        tile = type(tile)(tile.scalar, list(shape))

    def widened(value: Any) -> Any:
        return self.tensor(spread(value.handle, shape), tile.with_element_ty(value.type.scalar))

    return (
        lhs if from_left == shape else widened(lhs),
        rhs if from_right == shape else widened(rhs),
    )


@functools.cache
def _common_shape(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    import numpy as np

    return np.broadcast_shapes(*shapes)


def broadcast_with_numpy() -> None:
    """Operands of one shape need no broadcast; a number and a row become a tile without being copied."""
    import numpy as np
    from triton.language.semantic import TritonSemantic
    from triton.runtime.interpreter import TensorHandle

    def spread(handle: Any, shape: tuple[int, ...]) -> Any:
        return TensorHandle(np.broadcast_to(handle.data, shape), handle.dtype)

    TritonSemantic.broadcast_impl_value = lambda self, lhs, rhs: _as_tiles(self, lhs, rhs, spread)


def describe_types_once() -> None:
    """A tile's shape as Triton's tuple, the number of its elements and numpy's type for it depend on its type alone."""
    from triton.language import core
    from triton.runtime import interpreter

    describe, unwrap = core.tensor.__init__, core._unwrap_if_constexpr
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

    def without_constexpr(value: Any) -> Any:
        return value if type(value) is core.tensor else unwrap(value)

    core.tensor.__init__ = described
    core._unwrap_if_constexpr = without_constexpr
    core.block_type.with_element_ty = with_element_ty
    interpreter._get_np_dtype = get_np_dtype


def match_operands_once() -> None:
    """Operands of one type need no cast, and numpy broadcasts them itself when it combines them; what a number becomes
    beside a tile depends on it and on the tile's type.
    """
    from triton.language import core
    from triton.language.semantic import TritonSemantic

    match = TritonSemantic.binary_op_type_checking_impl
    numbers: dict[tuple[Any, ...], Any] = {}

    def match_once(self: Any, lhs: Any, rhs: Any, *flags: bool, **named: bool) -> Any:
        tile, other = (lhs, rhs) if type(lhs) is core.tensor else (rhs, lhs)
        if type(tile) is not core.tensor or type(tile.dtype) is not core.dtype:  # two numbers, or pointers
            return match(self, lhs, rhs, *flags, **named)
        alike = type(other) is core.tensor and tile.dtype is other.dtype
        if alike and tile.dtype.primitive_bitwidth != 16:  # 16-bit tiles are divided in float32
            return _as_tiles(self, lhs, rhs, lambda handle, shape: handle)
        if not isinstance(other, Number):
            return match(self, lhs, rhs, *flags, **named)
        shape = tile.type.shape if tile.type.is_block() else ()
        key = tile.dtype, shape, type(other), other, tile is lhs, flags, tuple(named.items())
        if key not in numbers:
            left, right = match(self, lhs, rhs, *flags, **named)
            kept, number = (left, right) if tile is lhs else (right, left)
            if kept is not tile:  # cast to the number's type
                return left, right
            numbers[key] = number
        return (tile, numbers[key]) if tile is lhs else (numbers[key], tile)

    TritonSemantic.binary_op_type_checking_impl = match_once


def refuse_overflow() -> None:
    """Integers that leave their type raise OverflowError.

    Triton looks for them with a dozen operations on tiles, and then, unless it debugs, says nothing.
    """
    import numpy as np
    from triton.language.semantic import TritonSemantic

    exactly = {"add": np.add, "sub": np.subtract, "mul": np.multiply}

    def refuse(self: Any, lhs: Any, rhs: Any, operation: Callable[..., Any]) -> None:
        dtype = lhs.type.scalar
        if dtype.int_bitwidth >= 64:
            return
        exact = exactly[operation.__name__](lhs.handle.data, rhs.handle.data, dtype=np.int64)
        least, largest = dtype.get_int_min_value(), dtype.get_int_max_value()
        if exact.size and not (least <= exact.min() and exact.max() <= largest):
            raise OverflowError(f"{dtype} overflows in {operation.__name__}")

    TritonSemantic.binary_op_sanitize_overflow_impl = refuse


def patch() -> None:
    """All of the above; once in a process, before the first kernel runs."""
    patch_language_once_a_launch()
    broadcast_with_numpy()
    describe_types_once()
    match_operands_once()
    refuse_overflow()
