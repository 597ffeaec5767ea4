"""Types in Triton's interpreter: one object for every type of tile, described once."""

from __future__ import annotations

import functools
from typing import Any


def tile_type(scalar: Any, sizes: tuple[int, ...]) -> Any:
    """The type of tiles of this shape; of a number, whose shape is ()."""
    if not sizes:
        return scalar
    try:
        return scalar.tiles[sizes]
    except (AttributeError, KeyError):
        from triton.language import core

        return core.block_type(scalar, sizes)


@functools.cache
def common_shape(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    import numpy as np

    return np.broadcast_shapes(*shapes)


def describe_types_once() -> None:
    """Tiles of one shape and element type share a type, so that types may be compared by identity; a tensor's shape as
    Triton's tuple, the number of its elements and numpy's type depend on it alone. ``sizes`` of a type: its shape.
    """
    from triton.language import core
    from triton.runtime import interpreter

    build, describe, unwrap = core.block_type.__init__, core.tensor.__init__, core._unwrap_if_constexpr
    numpy_type = interpreter._get_np_dtype
    numpy_types: dict[str, Any] = {}

    def one_for_all(cls: Any, element_ty: Any, shape: Any) -> Any:
        element_ty = unwrap(element_ty)
        sizes = tuple([size if type(size) is int else unwrap(size) for size in shape])
        tiles = element_ty.__dict__.setdefault("tiles", {})
        if sizes not in tiles:
            tile = object.__new__(cls)
            build(tile, element_ty, list(sizes))
            tile.sizes = sizes
            tiles[sizes] = tile
        return tiles[sizes]

    def described(self: Any, handle: Any, type: Any) -> None:
        try:
            self.type, self.dtype, self.shape, self.numel = type.described
        except AttributeError:
            describe(self, handle, type)
            type.described = self.type, self.dtype, self.shape, self.numel
        self.handle = handle

    def get_np_dtype(tt_dtype: Any) -> Any:
        scalar = tt_dtype.scalar
        if scalar.name not in numpy_types:
            numpy_types[scalar.name] = numpy_type(tt_dtype)
        return numpy_types[scalar.name]

    def without_constexpr(value: Any) -> Any:
        kind = type(value)
        return value if kind is core.tensor or kind is int else unwrap(value)

    core.dtype.sizes = ()
    core.block_type.__new__ = staticmethod(one_for_all)
    core.block_type.__init__ = lambda self, element_ty, shape: None
    core.block_type.with_element_ty = lambda self, scalar: tile_type(scalar, self.sizes)
    core.tensor.__init__ = described
    core._unwrap_if_constexpr = without_constexpr
    interpreter._get_np_dtype = get_np_dtype
