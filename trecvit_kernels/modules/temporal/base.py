"""What every choice of temporal module has in common."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from trecvit_kernels._checks import check_device, check_frames, check_like, check_shape, check_tensor
from trecvit_kernels.modules._residual import Residual
from trecvit_kernels.modules.linear import check_weights
from trecvit_kernels.modules.norm import RMSNorm
from trecvit_kernels.ops._dtypes import REAL

TemporalState = tuple[Tensor, ...]


class TemporalModule(Protocol):
    """What a model needs of a temporal module; ``RecurrentBlock`` and every ``TemporalBlock`` have it."""

    def init_state(self, *lead: int, dtype: torch.dtype | None = None) -> Any: ...

    def mix(
        self, stream: Residual, *, state: Any = None, reset: Tensor | None = None
    ) -> tuple[Residual, Any]: ...

    def __call__(self, x: Tensor, *, state: Any = None, reset: Tensor | None = None) -> Any: ...


class TemporalBlock(nn.Module, abc.ABC):
    r"""x + branch(norm(x)) on (B, T, \*lanes, width), where ``branch`` mixes causally over T, each lane on its own.

    Args:
        width: channels of the tokens.
        skip: False leaves the residual addition out: branch(norm(x)) alone.
    """

    state_names: ClassVar[tuple[str, ...]]
    takes_reset: ClassVar[bool] = False
    first_linear: ClassVar[str | None] = None  # the layer whose weights set the dtype of x; None: any will do

    def __init__(self, width: int, *, skip: bool = True) -> None:
        super().__init__()
        self.width, self.skip = width, skip
        self.norm = RMSNorm(width)

    @abc.abstractmethod
    def init_state(self, *lead: int, dtype: torch.dtype | None = None) -> TemporalState:
        r"""The state before the first frame of inputs (lead[0], T, \*lead[1:], width)."""

    @abc.abstractmethod
    def branch(
        self, y: Tensor, state: TemporalState | None, reset: Tensor | None
    ) -> tuple[Tensor, TemporalState]:
        r"""y (B, T, \*lanes, width), normed -> what is added to the stream, fresh, and the new state."""

    def forward(
        self, x: Tensor, *, state: TemporalState | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, TemporalState]:
        r"""Mix over time.

        Args:
            x: (B, T, \*lanes, width), at least one frame; dtype as in ``RecurrentBlock``, any for modules without
                linear layers in front; TRecViT: (B, T, N, D).
            state: from ``init_state`` or a former call; None starts a sequence, unless ``reset`` is given.
            reset: bool (B, T), True where a new sequence starts; only some modules take it.

        Returns:
            The new x and the state after the last frame.

        Raises:
            TypeError, ValueError: an argument whose type, dtype, shape or device does not fit, the state of another
                kind of module, or a ``reset`` that this module does not take.
        """
        where = type(self).__name__
        check_tensor(where, "x", x, ndim_at_least=3)
        shape = (*x.shape[:-1], self.width)
        check_like(where, "x", x, shape=shape, dtypes=REAL, device=self._device(x))
        check_frames(where, "x", x)
        if self.first_linear is not None:
            check_weights(where, x, getattr(self, self.first_linear))
        if state is not None:
            self._check_state(where, state, x)
        if reset is not None:
            if not self.takes_reset:
                raise ValueError(f"{where}: reset must be None, this module cannot start again inside a call")
            check_like(where, "reset", reset, shape=x.shape[:2], dtypes=(torch.bool,), device=x.device)
        mixed, state = self.mix(Residual(x), state=state, reset=reset)
        return mixed.total(), state

    def mix(
        self, stream: Residual, *, state: TemporalState | None = None, reset: Tensor | None = None
    ) -> tuple[Residual, TemporalState]:
        """``forward`` without its checks, the residual addition left to whoever comes next."""
        x, y = stream.normed(self.norm)
        branch, new_state = self.branch(y, state, reset)
        return (Residual(x, branch) if self.skip else Residual(branch)), new_state

    def _device(self, x: Tensor) -> torch.device:
        """Where x must be."""
        return self.norm.scale.device

    def _check_state(self, where: str, state: object, x: Tensor) -> None:
        names = ", ".join(self.state_names)
        if not isinstance(state, tuple) or len(state) != len(self.state_names):
            got = f"{len(state)} tensors" if isinstance(state, tuple) else type(state).__name__
            raise ValueError(f"{where}: state must be a tuple ({names}) of this kind of module, got {got}")
        fresh = self.init_state(x.shape[0], *x.shape[2:-1], dtype=x.dtype)
        for name, got, like in zip(self.state_names, state, fresh, strict=True):
            check_tensor(where, f"state {name}", got, ndim_at_least=2)
            check_shape(where, f"state {name}", got, self.state_shape(like, got))
            check_device(where, f"state {name}", got, x.device)

    def state_shape(self, fresh: Tensor, got: Tensor) -> tuple[int, ...]:
        """The shape that a tensor of a state must have, given that of a fresh one."""
        return tuple(fresh.shape)
