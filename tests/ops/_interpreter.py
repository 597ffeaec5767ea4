"""Triton's interpreter, made several times faster, and stricter about integers.

As shipped it patches ``triton.language`` anew for every helper called, broadcasts tiles to the shape they have,
describes the type of every tile from scratch and settles anew what type every two operands have in common. What a
kernel computes stays as it is. ``_interpreter_arithmetic`` has the short cuts of single operations.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Number
from typing import Any

from ._interpreter_arithmetic import compute_directly, refuse_overflow
from ._interpreter_types import common_shape, describe_types_once, tile_type


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


def call_builtins_directly() -> None:
    """A builtin is called with Triton's semantics, without a look at its keywords."""
    from triton.language import core
    from triton.runtime import interpreter

    checks_semantic = core.load.__code__  # of the wrapper that every builtin has

    def patch_attr(obj: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        checked = getattr(member, "__code__", None) is checks_semantic
        function, semantic = member.__wrapped__ if checked else member, interpreter.interpreter_semantic

        def call(*args: Any, **kwargs: Any) -> Any:
            kwargs["_semantic"] = semantic
            return function(*args, **kwargs)

        scope.set_attr(obj, name, call)

    interpreter._patch_attr = patch_attr


def _as_tiles(
    self: Any, lhs: Any, rhs: Any, spread: Callable[[Any, tuple[int, ...]], Any]
) -> tuple[Any, Any]:
    """Both operands with the type of their combination; ``spread`` gives a handle another shape."""
    if lhs.type is rhs.type:
        return lhs, rhs
    from_left, from_right = lhs.type.sizes, rhs.type.sizes
    if from_left == from_right:
        return lhs, rhs
    shape = common_shape(from_left, from_right)

    def widened(value: Any) -> Any:
        return self.tensor(spread(value.handle, shape), tile_type(value.type.scalar, shape))

    return (
        lhs if from_left == shape else widened(lhs),
        rhs if from_right == shape else widened(rhs),
    )


def broadcast_with_numpy() -> None:
    """Operands of one shape need no broadcast; a number and a row become a tile without being copied."""
    import numpy as np
    from triton.language.semantic import TritonSemantic
    from triton.runtime.interpreter import TensorHandle

    def spread(handle: Any, shape: tuple[int, ...]) -> Any:
        return TensorHandle(np.broadcast_to(handle.data, shape), handle.dtype)

    TritonSemantic.broadcast_impl_value = lambda self, lhs, rhs: _as_tiles(self, lhs, rhs, spread)


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


def look_for_overflow() -> None:
    """Triton looks for it with a dozen operations on tiles, and then, unless it debugs, says nothing."""
    import numpy as np
    from triton.language.semantic import TritonSemantic

    operations = {"add": np.add, "sub": np.subtract, "mul": np.multiply}

    def refuse(self: Any, lhs: Any, rhs: Any, operation: Callable[..., Any]) -> None:
        if lhs.type.scalar.int_bitwidth < 64:
            refuse_overflow(lhs.handle.data, rhs.handle.data, operations[operation.__name__], lhs.type.scalar)

    TritonSemantic.binary_op_sanitize_overflow_impl = refuse


def shift_bfloat16() -> None:
    """bfloat16 is the upper half of float32. Triton takes numbers of both apart and puts them together again, which
    comes to the same but for subnormal numbers, and takes dozens of operations.
    """
    import numpy as np
    from triton.language import core
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def has_subnormal(bits: Any, fraction: int) -> bool:
        magnitude = bits << 1 >> 1
        return bool(((magnitude > 0) & (magnitude < 1 << fraction)).any())

    def converted(data: Any, source: Any, target: Any, rounding_mode: Any) -> Any:
        if rounding_mode is None and source is core.float32 and target is core.bfloat16:
            bits = np.ascontiguousarray(data).view(np.uint32)
            if not has_subnormal(bits, 23):
                return (bits >> 16).astype(np.uint16)
        if source is core.bfloat16 and target is core.float32:
            bits = np.ascontiguousarray(data).view(np.uint16)
            if not has_subnormal(bits, 7):
                return bits.astype(np.uint32) << 16
        return convert(data, source, target, rounding_mode)

    interpreter._convert_float = converted


def patch() -> None:
    """All of the above; once in a process, before the first kernel runs."""
    patch_language_once_a_launch()
    call_builtins_directly()
    describe_types_once()
    broadcast_with_numpy()
    match_operands_once()
    look_for_overflow()
    compute_directly()
    shift_bfloat16()
