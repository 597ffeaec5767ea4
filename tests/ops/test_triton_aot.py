"""Every Triton kernel that a launch can select compiles ahead of time, on a machine without a GPU.

For sm_90 always, one variant of those that differ in sizes alone; all, and for the other architectures too, with
TRECVIT_AOT=all in the environment (``make aot``), as each architecture takes minutes. That docs/kernels.md was made
from these sources, for all of them, is always checked.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from trecvit_kernels import backends

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
if backends.interpreted():
    pytest.skip("TRITON_INTERPRET is set: nothing is compiled", allow_module_level=True)

from benchmarks import kernels
from trecvit_kernels.ops import _triton

from ._suite import OPS
from .test_framework import _raw

# Numbers of registers are not asserted: they change with the compiler. docs/kernels.md has them.
_NO_SPILLS = ("sm_90",)
_FEWEST_REGISTERS = 16  # of a kernel that does anything: one that only traps has 4
_ALL = os.environ.get("TRECVIT_AOT") == "all"


def _variants():
    for arch in _triton.ARCHITECTURES if _ALL else _NO_SPILLS:
        for op in kernels.rooms():
            seen = []
            for index, variant in enumerate(kernels.variants(op, arch)):
                if _ALL or (like := _but_for_sizes(op, variant)) not in seen:
                    yield pytest.param(op, arch, index, id=f"{arch}-{op}-{variant.name}")
                    if not _ALL:
                        seen.append(like)


def _but_for_sizes(op, variant):
    """A variant without the tokens and the width of narrow heads, which attention's tiles do not depend on."""
    if op != "spatial_attention":
        return variant.name
    sizes = {"N": None, "D": max(64, variant.constexprs["D"])}
    return dataclasses.replace(variant, name="", constexprs=variant.constexprs | sizes)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory):
    """Whatever was compiled here before, compile it again."""
    patch = pytest.MonkeyPatch()
    patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
    yield
    patch.undo()


@pytest.mark.parametrize("op,arch,index", list(_variants()))
def test_compiles(op, arch, index):
    reading = kernels.compile_one(op, arch, index)
    assert reading.registers >= _FEWEST_REGISTERS
    if arch in _NO_SPILLS:
        assert reading.local == 0, f"{reading.local} bytes of registers are spilled"


def test_every_room_with_a_backend_lists_its_kernels():
    assert set(kernels.rooms()) == {op.name for op in OPS.values() if "triton" in op.backends}
    for op in kernels.rooms():
        for arch in _triton.ARCHITECTURES:
            assert kernels.variants(op, arch), (op, arch)


@pytest.mark.parametrize("arch", _triton.ARCHITECTURES)
def test_attention_lists_models_sizes(arch):
    """Frames of 14 x 14 patches with and without a class token, 16 x 16, 8 x 8 and 7 x 7, and three widths of heads."""
    names = {variant.name for variant in kernels.variants("spatial_attention", arch)}
    sizes = {f"{tokens}x{width}" for tokens in (49, 64, 196, 197, 256) for width in (32, 64, 128)}
    assert {f"{way}-bfloat16-{size}-serial" for size in sizes for way in ("forward", "backward")} <= names


@pytest.mark.parametrize("count,text", [(0, "0"), (16, "16 B"), (1024, "1 KiB"), (69_888, "68.2 KiB")])
def test_sizes_are_in_binary_units(count, text):
    assert kernels.size(count) == text


def test_page_lists_these_kernels():
    """docs/kernels.md was written after the last change of the kernels and their launch tables."""
    page = kernels.PAGE.read_text()
    for op, section in kernels.sections(page).items():
        assert f"from sources {kernels.sources(op)}." in section, (
            f"run python -m benchmarks.kernels --op {op} --write docs/kernels.md"
        )
    listed = kernels.listed(page)
    expected = {}
    for arch in _triton.ARCHITECTURES:
        for op in kernels.rooms():
            for variant in kernels.variants(op, arch):
                expected.setdefault(op, {}).setdefault(variant.name, set()).add(arch)
    assert listed == expected, "run python -m benchmarks.kernels --write docs/kernels.md"


def test_a_spill_would_be_seen(tmp_path, monkeypatch):
    """A kernel that needs more than a thread's registers: the reading says so."""
    import triton
    import triton.language as tl

    @triton.jit
    def kernel(x_ptr, y_ptr, steps, N: tl.constexpr):
        i, k = tl.arange(0, N), tl.arange(0, 16)
        sums = tl.zeros((N, N), tl.float32)  # N N / 32 registers of a thread
        for step in range(steps):
            x = tl.load(x_ptr + step * 16 * N + i[:, None] * 16 + k[None, :])
            sums = tl.dot(x, tl.trans(x), sums)
        tl.store(y_ptr + i[:, None] * N + i[None, :], sums)

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    signature = {"x_ptr": "*bf16:16", "y_ptr": "*fp32:16", "steps": "i32", "N": "constexpr"}
    variant = _triton.Variant("spilling", kernel, signature, {"N": 128}, 1)
    _, local = kernels.read_cubin(_triton.compile_variant(variant, "sm_90").asm["cubin"])
    assert local > 1000


def test_what_does_not_fit_into_tensor_memory_is_refused(tmp_path, monkeypatch):
    """Products of more columns than Blackwell has room for: Triton compiles a trap, in which nothing is spilled."""
    import triton
    import triton.language as tl

    @triton.jit
    def kernel(x_ptr, y_ptr, N: tl.constexpr, PRODUCTS: tl.constexpr):
        at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
        x = tl.load(x_ptr + at)
        products = ()
        for i in tl.static_range(PRODUCTS):
            products = products + (tl.dot(x, tl.load(x_ptr + i * N * N + at)),)
        for i in tl.static_range(PRODUCTS):
            tl.store(y_ptr + i * N * N + at, products[i])

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    signature = {"x_ptr": "*bf16:16", "y_ptr": "*fp32:16", "N": "constexpr", "PRODUCTS": "constexpr"}
    variant = _triton.Variant("five", kernel, signature, {"N": 128, "PRODUCTS": 5}, 4)
    compiled = _triton.compile_variant(variant, "sm_100")
    assert kernels.read_cubin(compiled.asm["cubin"])[0] < _FEWEST_REGISTERS
    with pytest.raises(ValueError, match="five: at most 512 columns of tensor memory, got 640"):
        kernels.refuse_trap(compiled, variant.name)


@pytest.mark.parametrize("form,line", [("ptx", "\ttrap;"), ("amdgcn", "\ts_trap 2")])
def test_a_trap_is_refused(form, line):
    compiled = SimpleNamespace(metadata=SimpleNamespace(), asm={form: f"// trap\n{line}\n"})
    with pytest.raises(ValueError, match="one: the compiled kernel holds a trap"):
        kernels.refuse_trap(compiled, "one")
    compiled.asm[form] = "\tret;  // trap;\n"
    kernels.refuse_trap(compiled, "one")


def test_readings_of_other_assembly_are_refused():
    with pytest.raises(ValueError, match="one kernel's metadata expected"):
        kernels.read_code_object("")


_BF16 = torch.bfloat16
_REAL_SIZES = [
    ("linear_scan", {"batch": 8, "frames": 32, "lanes": (196, 1536), "dtype": _BF16}),
    ("linear_scan", {"batch": 1, "frames": 65_536, "lanes": (512,), "dtype": torch.complex64}),
    ("gated_lru", {"batch": 8, "frames": 32, "lanes": (196,), "channels": 1536, "dtype": _BF16}),
    (
        "gated_lru",
        {"batch": 8, "frames": 32, "lanes": (196,), "channels": 1536, "dtype": _BF16, "complex": True},
    ),
    ("gated_lru", {"batch": 1, "frames": 65_536, "lanes": (1,), "channels": 1024, "dtype": _BF16}),
]


@pytest.mark.parametrize("arch", _triton.ARCHITECTURES)
@pytest.mark.parametrize("name,sizes", _REAL_SIZES, ids=lambda value: value if isinstance(value, str) else "")
def test_scratch_is_small_at_real_sizes(name, sizes, arch):
    """What a call allocates beside its results is a small part of x, whichever schedule the architecture takes."""
    op = OPS[name]
    room = importlib.import_module(f"trecvit_kernels.ops.{name}.triton")
    with FakeTensorMode(), _triton.recording(arch) as launches:
        inputs = op.make_inputs(type(op.cases[0])("real", **sizes))
        shapes = dict.fromkeys(op.outputs)
        _, _, arguments, _ = _raw(op, inputs, shapes, "triton")
        *outputs, states = getattr(room, f"{name}_forward")(*arguments, True)
        cotangents = [torch.empty_like(value) for value in outputs]
        gradients = getattr(room, f"{name}_backward")(*cotangents, *arguments, states)
    assert launches
    x = next(iter(inputs.values()))
    known = {
        _memory(t)
        for t in (*arguments, *outputs, states, *cotangents, *gradients)
        if isinstance(t, torch.Tensor)
    }
    found = {
        _memory(t): t for launch in launches for t in launch.arguments.values() if isinstance(t, torch.Tensor)
    }
    scratch = sum(t.untyped_storage().nbytes() for memory, t in found.items() if memory not in known)
    assert scratch <= 0.15 * x.untyped_storage().nbytes()


def _memory(tensor):
    return tensor.untyped_storage()._cdata
