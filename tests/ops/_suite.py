"""The ops under test, how a case is run, and the one tolerance that every backend is held to."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trecvit_kernels import backends
from trecvit_kernels.ops import _schedule

# An error may be twice that of the reference run in the same dtype (both against float64) plus so many
# units in the last place of the tensor's largest element: what a rounding more or less amounts to. How the
# roundings of a run add up is luck, so the reference's error is the worst over a few draws: the same inputs
# nudged by parts in a thousand, other signs of the cotangents. More draws only allow more, and they cost time: one is
# enough for most cases, and the next level is drawn where it is not. Two runs are said to disagree after MORE_DRAWS, a
# backend is found wanting after all: a few of a heavy-tailed error underestimate its worst.
ERROR_RATIO = 2.0
FLOOR_ULPS = 2.0
MORE_DRAWS = 6
DRAWS = (1, 2, MORE_DRAWS, 24)

_OUTPUTS = {
    "linear_scan": ("h", "h_last"),
    "gated_lru": ("y", "h_last"),
    "recurrent_mixer": ("z", "h_last", "tail"),
    "spatial_attention": ("out",),
}


@dataclass(frozen=True, repr=False)
class Op:
    """One room: public function, reference, backends, cases."""

    name: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    backends: tuple[str, ...]
    cases: tuple[Any, ...]
    make_inputs: Callable[..., dict[str, Any]]

    def schedules(self, backend: str) -> tuple[str | None, ...]:
        """Schedules to force on a backend; (None,) where there is no choice (test_interpreter.py: in the mixer)."""
        only_one = backend in ("reference", "sdpa") or (self.name, backend) == ("recurrent_mixer", "triton")
        return (None,) if only_one else _schedule.SCHEDULES

    def __repr__(self) -> str:
        return self.name

    @property
    def outputs(self) -> tuple[str, ...]:
        return _OUTPUTS[self.name]

    def case(self, name: str) -> Any:
        return next(case for case in self.cases if case.name == name)


def _load(name: str) -> Op:
    room = f"trecvit_kernels.ops.{name}"
    op, cases = importlib.import_module(f"{room}.op"), importlib.import_module(f"{room}.cases")
    reference = importlib.import_module(f"{room}.reference")
    return Op(
        name, getattr(op, name), getattr(reference, name), op.BACKENDS, tuple(cases.CASES), cases.make_inputs
    )


OPS = {name: _load(name) for name in _OUTPUTS}


def device_of(op: Op, backend: str) -> tuple[str | None, str]:
    """Device type on which ``backend`` runs ``op`` here, or None and the reason why it cannot."""
    reason = ""
    for device in ("cpu", "cuda"):
        if device == "cuda" and not torch.cuda.is_available():
            continue
        try:
            backends.select(op.name, backend, device, op.backends)
            return device, ""
        except RuntimeError as error:
            reason = reason or str(error)
    return None, reason


def untested(ran: set[tuple[str, str]], only: str | None = None) -> list[str]:
    """Backends that can run here and yet are not among the (op, backend) pairs that ran.

    ``only``: judge this backend alone, which then must be able to run every op that has it.
    """
    complaints = []
    for op in OPS.values():
        for backend in op.backends:
            if only not in (None, backend) or (op.name, backend) in ran:
                continue
            where, reason = device_of(op, backend)
            if where is not None:
                complaints.append(f"{op.name}: backend {backend} is available but ran no case")
            elif only is not None:
                complaints.append(f"{op.name}: backend {backend} was asked for and ran no case: {reason}")
    if only is not None and not any(only in op.backends for op in OPS.values()):
        complaints.append(f"no op has a backend {only}")
    return complaints


# Running a case


@dataclass(frozen=True)
class Results:
    """Outputs by name, and gradients by the name of the input."""

    outputs: dict[str, Tensor]
    gradients: dict[str, Tensor]

    def items(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.outputs.items()
        yield from ((f"d{name}", gradient) for name, gradient in self.gradients.items())


def map_tensors(inputs: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """The same arguments with every tensor (also inside the state) changed."""

    def one(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(value)
        return tuple(map(one, value)) if isinstance(value, tuple) else value

    return {name: one(value) for name, value in inputs.items()}


def leaves(inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Floating-point tensors of a call by name."""
    found = {}
    for name, value in inputs.items():
        if isinstance(value, tuple):
            found |= {f"{name}[{i}]": part for i, part in enumerate(value)}
        elif isinstance(value, Tensor) and value.dtype != torch.bool:
            found[name] = value
    return found


def widened(tensor: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Copy in ``dtype`` (complex stays complex of the same precision); bool unchanged."""
    if tensor.dtype == torch.bool:
        return tensor
    return tensor.to(dtype.to_complex() if tensor.dtype.is_complex else dtype)


def named_outputs(op: Op, result: Any) -> dict[str, Tensor]:
    if isinstance(result, Tensor):
        result = (result,)
    flat = [part for value in result for part in (value if isinstance(value, tuple) else (value,))]
    return dict(zip(op.outputs, flat, strict=True))


def cotangents_for(outputs: dict[str, Tensor], seed: int = 1) -> dict[str, Tensor]:
    """Random gradient of the loss with respect to each output, in its dtype."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(
            value.shape, generator=generator, dtype=torch.complex128 if value.is_complex() else torch.float64
        ).to(value.device, value.dtype)
        for name, value in outputs.items()
    }


@contextlib.contextmanager
def _settings(schedule: str | None, threads: int | None = None) -> Iterator[None]:
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        with _schedule.force(schedule) if schedule else contextlib.nullcontext():
            yield
    finally:
        torch.set_num_threads(before)


def run(
    op: Op,
    inputs: dict[str, Any],
    backend: str,
    cotangents: dict[str, Tensor] | None,
    schedule: str | None = None,
) -> Results:
    """One call and, given cotangents, the gradients of all floating inputs."""
    inputs = map_tensors(inputs, lambda t: t if t.dtype == torch.bool else t.detach().requires_grad_())
    wanted = leaves(inputs)
    # The reference's many small operations on these small tensors are fastest without waking other threads.
    with _settings(schedule, 1 if backend == "reference" else None):
        outputs = named_outputs(op, op.function(**inputs, backend=backend))
        gradients: dict[str, Tensor] = {}
        if cotangents is not None:
            used = [name for name, value in outputs.items() if value.requires_grad]
            found = torch.autograd.grad(
                [outputs[name] for name in used], list(wanted.values()), [cotangents[name] for name in used]
            )
            gradients = dict(zip(wanted, found, strict=True))
    return Results({name: value.detach() for name, value in outputs.items()}, gradients)


def run_without_grad(
    op: Op, inputs: dict[str, Any], backend: str, schedule: str | None = None
) -> dict[str, Tensor]:
    with torch.no_grad(), _settings(schedule):
        return named_outputs(op, op.function(**inputs, backend=backend))


# Truth and tolerance


@dataclass(frozen=True)
class Truth:
    """A case's inputs and cotangents, its results in float64, the reference's and the allowed errors."""

    op: Op
    inputs: dict[str, Any]
    cotangents: dict[str, Tensor]
    exact: Results
    reference: Results
    errors: dict[str, float]
    draws: int
    narrow: Truth | None = None  # of float64: the truth in float32, whose errors these are, scaled

    @property
    def allowed(self) -> dict[str, float]:
        # The truth of float64 is no more exact than what is held to it: it may be off by as much once more.
        ratio = ERROR_RATIO if self.narrow is None else ERROR_RATIO + 1
        true = dict(self.exact.items())
        return {
            name: ratio * self.errors[name] + FLOOR_ULPS * torch.finfo(value.dtype).eps * largest(true[name])
            for name, value in self.reference.items()
        }

    @functools.cached_property
    def _of_more_draws(self) -> Truth:
        draws = next(level for level in DRAWS if level > self.draws)
        if self.narrow is not None:
            narrow = self.narrow._of_more_draws
            return dataclasses.replace(self, errors=_as_float64(narrow.errors), draws=draws, narrow=narrow)
        errors = dict(self.errors)
        for draw in range(self.draws, draws):
            drawn, signed = _drawn(self.inputs, self.cotangents, draw)
            found = _errors(run(self.op, drawn, "reference", signed), _exact(self.op, drawn, signed))
            errors = {name: max(error, errors[name]) for name, error in found.items()}
        return dataclasses.replace(self, errors=errors, draws=draws)

    def levels(self, most: int = DRAWS[-1]) -> Iterator[Truth]:
        """This truth, then the same with the errors of more and more draws, drawn when they are asked for."""
        truth = self
        yield truth
        while truth.draws < most:
            truth = truth._of_more_draws
            yield truth


def largest(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0


def _errors(got: Results, exact: Results) -> dict[str, float]:
    true = dict(exact.items())
    return {name: largest(widened(value) - true[name]) for name, value in got.items()}


def _as_float64(errors: dict[str, float]) -> dict[str, float]:
    shrink = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    return {name: shrink * error for name, error in errors.items()}


def _exact(op: Op, inputs: dict[str, Any], cotangents: dict[str, Tensor]) -> Results:
    wide = {name: widened(value) for name, value in cotangents.items()}
    return run(op, map_tensors(inputs, widened), "reference", wide)


def _drawn(
    inputs: dict[str, Any], cotangents: dict[str, Tensor], draw: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A call as well conditioned as this one but with other roundings."""
    generator = torch.Generator().manual_seed(draw)

    def nudged(tensor: Tensor) -> Tensor:
        if tensor.dtype == torch.bool:
            return tensor
        size = max(1e-3, 2 * torch.finfo(tensor.dtype).eps)
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        return (widened(tensor) * (1 + size * noise)).to(tensor.dtype)

    signs = {
        name: value * (2 * torch.randint(2, value.shape, generator=generator) - 1).to(value.dtype)
        for name, value in cotangents.items()
    }
    return map_tensors(inputs, nudged), signs


def truth_of(op: Op, inputs: dict[str, Any], cotangents: dict[str, Tensor] | None = None) -> Truth:
    """Reference in float64 on the same inputs; tolerance from its error in the dtype of the inputs."""
    if cotangents is None:
        cotangents = cotangents_for(run_without_grad(op, inputs, "reference"))
    reference = run(op, inputs, "reference", cotangents)
    if next(iter(leaves(inputs).values())).dtype in (torch.float64, torch.complex128):
        # Nothing here is more exact than float64: its error is float32's, scaled by the ratio of ulps.
        narrow = {name: widened(value, torch.float32) for name, value in cotangents.items()}
        narrow_truth = truth_of(op, map_tensors(inputs, lambda t: widened(t, torch.float32)), narrow)
        errors = _as_float64(narrow_truth.errors)
        return Truth(op, inputs, cotangents, reference, reference, errors, narrow_truth.draws, narrow_truth)
    exact = _exact(op, inputs, cotangents)
    return Truth(op, inputs, cotangents, exact, reference, _errors(reference, exact), DRAWS[0])


@functools.cache
def truth(op: Op, case: Any) -> Truth:
    return truth_of(op, op.make_inputs(case))


def assert_matches(got: Results, truth: Truth, where: str = "") -> None:
    """Names, shapes and dtypes of the reference; errors within what the truth allows; no NaN."""
    for level in truth.levels():
        problems = _problems(got, level, where)
        if not problems:
            return
    raise AssertionError(f"{where}: " + "; ".join(problems))


def _problems(got: Results, truth: Truth, where: str) -> list[str]:
    reference, exact = dict(truth.reference.items()), dict(truth.exact.items())
    got_by_name = dict(got.items())
    assert got_by_name.keys() <= exact.keys(), f"{where}: {got_by_name.keys()} against {exact.keys()}"
    problems = []
    for name, value in got_by_name.items():
        value = value.cpu()
        assert value.dtype == reference[name].dtype, f"{where} {name}: dtype {value.dtype}"
        assert value.shape == reference[name].shape, f"{where} {name}: shape {tuple(value.shape)}"
        difference = widened(value) - exact[name]
        error = largest(difference)
        if not error <= truth.allowed[name]:  # also catches NaN
            worst = difference.abs().nan_to_num(torch.inf).argmax()
            index = tuple(int(i) for i in torch.unravel_index(worst, value.shape)) if value.ndim else ()
            problems.append(
                f"{name}: error {error:.3e} > {truth.allowed[name]:.3e} at {index}:"
                f" got {value[index].item()}, exact {exact[name][index].item()}"
            )
    return problems


def assert_agree(first: Results, second: Results, truth: Truth, where: str = "") -> None:
    """Two runs of a backend differ by no more than either may be off."""
    others = dict(second.items())
    for name, value in first.items():
        difference = largest(widened(value) - widened(others[name]))
        for level in truth.levels(MORE_DRAWS):
            if difference <= level.allowed[name]:
                break
        else:
            raise AssertionError(f"{where} {name}: {difference:.3e} > {level.allowed[name]:.3e}")


def on(device: str, inputs: dict[str, Any]) -> dict[str, Any]:
    """The arguments on a device; strides are kept only where nothing has to move."""
    return inputs if device == "cpu" else map_tensors(inputs, lambda t: t.to(device))
