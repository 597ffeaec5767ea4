"""Operations on tiles of one type in Triton's interpreter by one call of numpy.

Between equals Triton casts nothing, and numpy has the types that kernels compute in. All else, 16-bit numbers among it,
goes Triton's own way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ._interpreter_types import common_shape, tile_type

_FLOATS = {"fp32": np.float32, "fp64": np.float64}
_INTEGERS = {"int32": np.int32, "int64": np.int64}
_numbers: dict[tuple[float, str], np.ndarray] = {}


def _number(value: float, scalar: Any) -> np.ndarray:
    """A number beside a tile takes the tile's type."""
    key = value, scalar.name
    if key not in _numbers:
        dtype = _FLOATS.get(scalar.name) or _INTEGERS[scalar.name]
        _numbers[key] = np.array([value or 0], dtype)  # Triton's -0.0 is 0.0
    return _numbers[key]


def _joint(scalar: Any, one: Any, other: Any) -> Any:
    """The type of what tiles or numbers of two types become together, with elements of type ``scalar``."""
    if one.sizes == other.sizes:
        return tile_type(scalar, one.sizes)
    return tile_type(scalar, common_shape(one.sizes, other.sizes))


def refuse_overflow(left: np.ndarray, right: np.ndarray, operation: Callable[..., Any], scalar: Any) -> Any:
    """Integers that leave their type raise OverflowError; so far 64 bits, which are not looked at."""
    exact = operation(left, right, dtype=np.int64)
    if scalar.int_bitwidth >= 64:
        return exact
    least, largest = scalar.get_int_min_value(), scalar.get_int_max_value()
    if exact.size and not (least <= exact.min() and exact.max() <= largest):
        raise OverflowError(f"{scalar} overflows in {operation.__name__}")
    return exact


def compute_directly() -> None:
    from triton import language as tl
    from triton.language import core
    from triton.runtime import interpreter

    tensor, handle_type, constexpr = core.tensor, interpreter.TensorHandle, core.constexpr
    semantic = interpreter.interpreter_semantic

    def made(data: np.ndarray, dtype: Any, type: Any) -> Any:
        handle = handle_type.__new__(handle_type)
        handle.data, handle.dtype, handle.attr = data, dtype, {}
        return tensor(handle, type)

    def arithmetic(name: str, operation: Callable[..., Any], reflected: bool) -> None:
        slow = getattr(tensor, name).__wrapped__

        def operator(self: Any, other: Any) -> Any:
            kind, scalar, mine = type(other), self.dtype, self.handle.data
            if kind is constexpr:
                other = other.value
                kind = type(other)
            is_float = scalar.name in _FLOATS
            if is_float or (scalar.name in _INTEGERS and operation is not np.divide):
                value = None
                if kind is tensor:
                    if other.dtype is scalar:
                        value, tile = other.handle.data, _joint(scalar, self.type, other.type)
                elif (kind is float and is_float) or (kind is int and -(2**31) <= other < 2**31):
                    value, tile = _number(other, scalar), self.type
                if value is not None:
                    left, right = (value, mine) if reflected else (mine, value)
                    if is_float:
                        return made(operation(left, right), scalar, tile)
                    exact = refuse_overflow(left, right, operation, scalar)
                    return made(exact.astype(_INTEGERS[scalar.name]), scalar, tile)
            elif operation is np.add and scalar.is_ptr() and kind is tensor and other.dtype.name in _INTEGERS:
                size = max(1, scalar.element_ty.primitive_bitwidth // 8)
                data = mine + size * other.handle.data.astype(np.uint64)
                return made(data, scalar, _joint(scalar, self.type, other.type))
            return slow(self, other, _semantic=semantic)

        setattr(tensor, name, operator)

    def logic(name: str, operation: Callable[..., Any], types: tuple[str, ...]) -> None:
        """Operations that make bits."""
        slow = getattr(tensor, name).__wrapped__

        def operator(self: Any, other: Any) -> Any:
            other = semantic.to_tensor(other)
            if other.dtype is self.dtype and self.dtype.name in types:
                data = operation(self.handle.data, other.handle.data)
                return made(data, self.handle.dtype, _joint(core.int1, self.type, other.type))
            return slow(self, other, _semantic=semantic)

        setattr(tensor, name, operator)

    for name, operation in (
        ("add", np.add),
        ("sub", np.subtract),
        ("mul", np.multiply),
        ("truediv", np.divide),
    ):
        arithmetic(f"__{name}__", operation, reflected=False)
        arithmetic(f"__r{name}__", operation, reflected=True)
    for name, operation in (
        ("gt", np.greater),
        ("ge", np.greater_equal),
        ("lt", np.less),
        ("le", np.less_equal),
        ("eq", np.equal),
        ("ne", np.not_equal),
    ):
        logic(f"__{name}__", operation, (*_FLOATS, *_INTEGERS))
    for name, operation in (("and", np.bitwise_and), ("or", np.bitwise_or)):
        logic(f"__{name}__", operation, ("int1",))

    select = core.where.__wrapped__

    def where(condition: Any, x: Any, y: Any) -> Any:
        scalar = x.dtype if type(x) is tensor else getattr(y, "dtype", None)
        if type(condition) is not tensor or condition.dtype is not core.int1 or scalar is None:
            return select(condition, x, y, _semantic=semantic)
        tile, values = tile_type(scalar, condition.type.sizes), []
        for value in (x, y):
            if type(value) is tensor and value.dtype is scalar and type(scalar) is core.dtype:
                values.append(value.handle.data)
                tile = _joint(scalar, tile, value.type)
            elif type(value) is float and scalar.name in _FLOATS:
                values.append(_number(value, scalar))
            else:
                return select(condition, x, y, _semantic=semantic)
        return made(np.where(condition.handle.data, *values), scalar, tile)

    core.where = tl.where = where
