"""Numerical derivatives in float64: torch.autograd.gradcheck of every op on every backend, both schedules."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch.autograd.gradcheck import GradcheckError

from trecvit_kernels.ops import _schedule

from ._suite import leaves, map_tensors, named_outputs, on

# Small cases in float64; frames beyond 16 cross a boundary between saved states.
_SETTINGS = {
    "linear_scan": [
        {"batch": 2, "frames": 5, "lanes": (3,)},
        {"batch": 1, "frames": 18, "lanes": (2,), "decay": "near_one", "reverse": True},
        {"batch": 1, "frames": 18, "lanes": (2,), "decay": "near_one", "complex": True},
        {"batch": 1, "frames": 4, "lanes": (2, 2), "h0": False, "reverse": True, "complex": True},
    ],
    "gated_lru": [
        {"batch": 2, "frames": 4, "lanes": (2,), "channels": 4, "h0": False},
        {"batch": 1, "frames": 18, "lanes": (1,), "channels": 2, "reset": "random"},
        {"batch": 1, "frames": 5, "lanes": (2,), "channels": 4, "reset": "random", "complex": True},
        {"batch": 1, "frames": 18, "lanes": (1,), "channels": 2, "complex": True},
        {"batch": 1, "frames": 5, "lanes": (2,), "channels": 4, "decay": "close_to_one"},
        {"batch": 1, "frames": 5, "lanes": (2,), "channels": 4, "decay": "close_to_one", "complex": True},
        {"batch": 1, "frames": 6, "lanes": (2,), "channels": 4, "gates": "saturated"},
        {"batch": 1, "frames": 6, "lanes": (2,), "channels": 4, "gates": "saturated", "complex": True},
        {"batch": 1, "frames": 6, "lanes": (2,), "channels": 4, "normalizer": "convex"},
        {"batch": 1, "frames": 6, "lanes": (2,), "channels": 4, "normalizer": "convex", "complex": True},
    ],
    "recurrent_mixer": [
        {"batch": 1, "frames": 4, "lanes": (2,), "channels": 4},
        {"batch": 1, "frames": 18, "lanes": (1,), "channels": 2, "heads": 1, "taps": 3, "reset": "random"},
        {"batch": 2, "frames": 3, "lanes": (1,), "channels": 4, "complex": True, "state": False},
        {"batch": 1, "frames": 2, "lanes": (1,), "channels": 4, "complex": True, "reset": "random"},
    ],
    "spatial_attention": [
        {"lead": (1, 2), "tokens": 4, "heads": 2, "head_dim": 3},
        {"lead": (2,), "tokens": 3, "heads": 1, "head_dim": 2, "scale": 1.3},
    ],
}


def _inputs(op, settings):
    """The op's inputs in float64, kept where the bound on the square root's slope does not bite."""
    settings = dict(settings)
    close = settings.get("decay") == "close_to_one"
    if close:
        settings["decay"] = "typical"
    dtype = torch.float64
    if op.name == "linear_scan" and settings.pop("complex", False):
        dtype = torch.complex128
    inputs = op.make_inputs(type(op.cases[0])("gradcheck", dtype=dtype, **settings))
    if close:  # 1 - |a| from 1e-3 to 1e-5 at open gates
        rate = torch.logspace(-3, -5, len(inputs["a_param"]), dtype=torch.float64)
        inputs["a_param"] = torch.log(torch.expm1(rate / 8))
    if settings.get("gates") == "saturated":
        inputs["gate_a"] = inputs["gate_a"].clamp(min=-8.0)
    return inputs


def _replaced(inputs, values):
    """``inputs`` with its floating tensors, in the order of ``leaves``, taken from ``values``."""
    values = iter(values)
    return map_tensors(inputs, lambda t: t if t.dtype == torch.bool else next(values))


def test_gradcheck(op, backend, device):
    for settings in _SETTINGS[op.name]:
        inputs = on(device, _inputs(op, settings))
        arguments = [t.detach().clone().requires_grad_() for t in leaves(inputs).values()]

        def call(*values, inputs=inputs):
            result = op.function(**_replaced(inputs, values), backend=backend)
            return tuple(named_outputs(op, result).values())

        for schedule in op.schedules(backend):
            with _schedule.force(schedule) if schedule else contextlib.nullcontext():
                try:
                    torch.autograd.gradcheck(call, arguments, eps=1e-6, atol=1e-7, rtol=1e-4)
                except GradcheckError as error:
                    pytest.fail(f"{settings} {schedule}: {error}")
