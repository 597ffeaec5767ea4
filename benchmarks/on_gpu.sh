#!/usr/bin/env bash
# What needs a GPU, in two parts of under ten minutes each:
#
#   benchmarks/on_gpu.sh wheels      on a machine with network: packages that the GPU machine may lack, into wheels/
#   benchmarks/on_gpu.sh 1           on the GPU machine: build, the whole test suite, compute-sanitizer
#   benchmarks/on_gpu.sh 2           on the GPU machine: the measurements
#   benchmarks/on_gpu.sh rehearse    anywhere: both parts with the kernels in Triton's interpreter, few tests, tiny sizes
#
# The GPU machine needs Python, PyTorch and Triton, a C++ compiler, and for everything else no network: what is missing
# there is installed from wheels/. Logs and results.json go to $OUT (default build/on_gpu); a short table comes last.
# Nothing here touches the GPU's settings. docs/gpu.md says more.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

SELF=$PWD/benchmarks/on_gpu.sh
export PYTHON=${PYTHON:-python3}
OUT=${OUT:-build/on_gpu}
SITE=$PWD/build/on_gpu_site
LIMIT=575 # seconds, of each part
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
export OUT
export PYTHONPATH=$PWD:$SITE PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1 MPLBACKEND=Agg
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$PWD/build/on_gpu_cache/triton} TORCHINDUCTOR_CACHE_DIR=$PWD/build/on_gpu_cache/inductor
export TORCH_EXTENSIONS_DIR=$PWD/build/on_gpu_cache/extensions
unset TRECVIT_BACKEND TRECVIT_ISA CMAKE_ARGS PYTHONHOME PYTEST_ADDOPTS

# A toolkit that is installed but not on the PATH.
for folder in "${CUDA_HOME:-/usr/local/cuda}"/bin "${CUDA_HOME:-/usr/local/cuda}"/compute-sanitizer; do
    tool=$([ "${folder##*/}" = bin ] && echo nvcc || echo compute-sanitizer)
    command -v "$tool" >/dev/null || { [ -x "$folder/$tool" ] && export PATH=$PATH:$folder; }
done

# Module and the package that has it: what this repository imports, with the needs of those (tests/benchmarks/
# test_on_gpu.py) but PyTorch and Triton with theirs. With numpy 2.5 the interpreter of Triton 3.6 fails in a rehearsal.
NEEDED="pybind11:pybind11 cmake:cmake ninja:ninja setuptools:setuptools packaging:packaging iniconfig:iniconfig
pluggy:pluggy pygments:pygments pytest:pytest execnet:execnet xdist:pytest-xdist pytest_benchmark:pytest-benchmark
cpuinfo:py-cpuinfo2 hypothesis:hypothesis sortedcontainers:sortedcontainers safetensors:safetensors rich:rich
typer:typer click:click shellingham:shellingham markdown_it:markdown-it-py mdurl:mdurl annotated_doc:annotated-doc
pydantic:pydantic pydantic_core:pydantic-core annotated_types:annotated-types typing_inspection:typing-inspection
typing_extensions:typing-extensions huggingface_hub:huggingface-hub hf_xet:hf-xet filelock:filelock fsspec:fsspec
yaml:pyyaml tqdm:tqdm httpx2:httpx2 httpcore2:httpcore2 h11:h11 anyio:anyio idna:idna truststore:truststore
numpy:numpy<2.5 einops:einops fla:fla-core accelerated_scan:accelerated-scan"
# What must be importable in the end; peers that are missing are left out of the measurements.
IMPORTED="pybind11 cmake ninja setuptools packaging pytest xdist pytest_benchmark hypothesis numpy safetensors.torch
huggingface_hub rich.console typer trecvit_kernels.cli"

SUMMARY=()
FAILED=0

# note RESULT STEP: a line of the closing table
note() {
    SUMMARY+=("$(printf '%-8s %-44s %4d s' "$1" "$2" "$((SECONDS - STARTED))")")
    [ "$1" = failed ] && FAILED=1
    return 0
}

# step NAME SECONDS LOG COMMAND...: run it, its output in $OUT/LOG and its last lines here; it gets an interrupt at
# its time limit, so that pytest still sums up.
step() {
    local name=$1 limit=$2 log=$OUT/$3
    shift 3
    STARTED=$SECONDS
    echo "== $name (at most $limit s)"
    timeout -s INT -k 15 "$limit" "$@" >>"$log" 2>&1 </dev/null
    local status=$?
    tail -n 25 "$log" | cut -c 1-300
    case $status in
        0) note ok "$name" ;;
        124 | 130 | 137) note failed "$name: out of time" ;;
        *) note failed "$name: status $status" ;;
    esac
    return 0
}

finish() {
    echo
    echo "== part $1, $SECONDS s"
    printf '%s\n' "${SUMMARY[@]}"
    exit "$FAILED"
}

wheels() {
    local packages=() pair
    for pair in $NEEDED; do packages+=("${pair#*:}"); done
    rm -rf wheels
    # The platforms that manylinux wheels name; pip matches each exactly.
    "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
        --platform manylinux2014_x86_64 --platform manylinux2010_x86_64 --platform manylinux1_x86_64 \
        -d wheels "${packages[@]}" || exit
    du -sh wheels
}

# Install what cannot be imported from wheels/, into a folder of its own, behind everything that is there already.
install_missing() {
    local missing
    missing=$("$PYTHON" - $NEEDED <<'PYTHON'
import importlib.util, sys
print(*(pair.split(":")[1] for pair in sys.argv[1:] if importlib.util.find_spec(pair.split(":")[0]) is None))
PYTHON
    ) || return
    echo "missing here: ${missing:-nothing}"
    # shellcheck disable=SC2086
    add_wheels $missing
    can_import && return 0
    # Something that is there is too old for what came beside it. Not numpy: Triton and PyTorch chose theirs.
    echo "adding every wheel but numpy's"
    local pair all=()
    for pair in $NEEDED; do [ "${pair%%:*}" = numpy ] || all+=("${pair#*:}"); done
    add_wheels "${all[@]}"
    can_import
}

# All at once, or else one by one: a wheel that does not fit must not keep the others out.
add_wheels() {
    [ $# = 0 ] && return
    local package add=("$PYTHON" -m pip install --quiet --no-index --no-deps --find-links wheels --target "$SITE" --upgrade)
    "${add[@]}" "$@" && return
    for package in "$@"; do "${add[@]}" "$package" || echo "no wheel for $package"; done
}

can_import() {
    # shellcheck disable=SC2086
    "$PYTHON" - $IMPORTED <<'PYTHON'
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
PYTHON
}

describe() {
    "$PYTHON" --version
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,temperature.gpu --format=csv || echo "no nvidia-smi"
    nvcc --version | tail -n 2 || echo "no nvcc"
    compute-sanitizer --version | head -n 1 || echo "no compute-sanitizer"
    nproc
    "$PYTHON" - <<'PYTHON'
import torch, triton, trecvit_kernels
print("torch", torch.__version__, "triton", triton.__version__, "trecvit_kernels", trecvit_kernels.__version__)
print("GPU", torch.cuda.get_device_name() if torch.cuda.is_available() else "none that PyTorch sees")
for name, status in trecvit_kernels.backends.available().items():
    print(f"  {name}: {'available' if status.available else status.reason}")
PYTHON
}

require_gpu() {
    "$PYTHON" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "PyTorch sees no GPU here")' || exit
}

# Nothing below asks again: where a backend cannot run, its tests are skipped and its rows are not measured.
require_backends() {
    "$PYTHON" - triton cuda <<'PYTHON'
import sys
from trecvit_kernels import backends
found = backends.available()
missing = [f"{name}: {found[name].reason}" for name in sys.argv[1:] if not found[name].available]
sys.exit("\n".join(missing))
PYTHON
}

# The CUDA kernels for this GPU only; everything else as usual.
build() {
    local options=(-DTRECVIT_CUDA_ARCHITECTURES=native)
    [ -n "${REHEARSAL:-}" ] && options=(-DTRECVIT_CUDA=OFF)
    CMAKE_ARGS="${options[*]}" "$PYTHON" setup.py --quiet build_ext --inplace
}

# The extension's package test needs the package index; everything else runs.
SUITE=(-q -p no:cacheprovider -rf --ignore tests/test_package.py --maxprocesses 16)

# Small cases that reach every kernel, both schedules, real and complex, 16 and 32 bits, masked edges, strided views.
REDUCED="one-frame or video-real-bf16 or video-complex-f32 or video-c64 or video-f32 or video-bf16 or odd or sliced"
REDUCED="$REDUCED or reset-chunks-real or patches-and-cls or scaled-f16"
[ -n "${REHEARSAL:-}" ] && REDUCED="one-frame-real or one-frame]"

# A CUDA peer that compiles itself when imported (accelerated_scan.warp): where its headers and libcudart may be, if
# they are PyTorch's own packages instead of a whole toolkit.
toolkit() {
    local own=$PWD/build/on_gpu_cache/lib
    mkdir -p "$own"
    [ -d /usr/local/cuda/include ] && export CUDA_HOME=${CUDA_HOME:-/usr/local/cuda}
    CPATH=$("$PYTHON" - "$own" <<'PYTHON'
import glob, pathlib, sys, sysconfig
packages = sysconfig.get_path("purelib") + "/nvidia/"
for library in glob.glob(packages + "*/lib/libcudart.so.*"):
    link = pathlib.Path(sys.argv[1], "libcudart.so")
    link.unlink(missing_ok=True)
    link.symlink_to(library)
print(":".join(glob.glob(packages + "*/include")))
PYTHON
    )
    export CPATH LIBRARY_PATH=$own TORCH_CUDA_ARCH_LIST=9.0
}

# sanitize TOOL LIMIT BACKEND...: the reduced cases of every op, one process an op and backend side by side, every
# allocation on its own so that an access behind a tensor's end is caught.
sanitize() {
    local tool=$1 limit=$2 backend op task pids=() status=0
    shift 2
    local prefix=(compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 20)
    [ -n "${REHEARSAL:-}" ] && prefix=(env)
    for backend in "$@"; do
        for op in linear_scan gated_lru recurrent_mixer spatial_attention; do
            PYTORCH_NO_CUDA_MEMORY_CACHING=1 OMP_NUM_THREADS=1 timeout -s INT -k 15 "$limit" "${prefix[@]}" \
                "$PYTHON" -m pytest -q -p no:cacheprovider -p no:xdist -rf --backend "$backend" \
                tests/ops/test_values.py -k "$op and ($REDUCED)" >"$OUT/.$tool-$backend-$op" 2>&1 </dev/null &
            pids+=("$!:$backend-$op")
        done
    done
    for task in "${pids[@]}"; do
        wait "${task%%:*}" || { status=1; echo "$tool on ${task#*:}: failed"; }
        grep -qE '(^|[^0-9])[1-9][0-9]* passed' "$OUT/.$tool-${task#*:}" ||
            { status=1; echo "$tool on ${task#*:}: failed, no test passed"; } # all skipped is no success
    done
    for task in "${pids[@]}"; do
        printf '\n== %s %s\n' "$tool" "${task#*:}"
        tail -c 100000 "$OUT/.$tool-${task#*:}"
        rm -f "$OUT/.$tool-${task#*:}"
    done
    return $status
}

# Tool and the backends that it watches.
WATCHED=("memcheck triton cuda" "racecheck triton cuda" "synccheck cuda" "initcheck cuda")
[ -n "${REHEARSAL:-}" ] && WATCHED=("memcheck triton" "racecheck triton")

part_1() {
    SECONDS=0
    rm -f "$OUT"/{environment.txt,build.log,suite.log,memcheck.log,racecheck.log,synccheck.log,initcheck.log}
    step "missing packages" 60 build.log "$SELF" _install_missing
    step "build the extension" $([ -n "${REHEARSAL:-}" ] && echo 900 || echo 150) build.log "$SELF" _build
    [ -z "${REHEARSAL:-}" ] && step "backends triton and cuda" 60 build.log "$SELF" _require_backends
    step "describe the machine" 60 environment.txt "$SELF" _describe
    local sanitizers=170
    if [ -n "${REHEARSAL:-}" ]; then
        step "tests (few)" 500 suite.log env OMP_NUM_THREADS=1 "$PYTHON" -m pytest "${SUITE[@]}" -n 2 tests/ops/test_values.py \
            --backend triton -k "one-frame"
    else
        step "whole test suite" $((LIMIT - sanitizers - 15 - SECONDS)) suite.log env OMP_NUM_THREADS=1 \
            "$PYTHON" -m pytest "${SUITE[@]}" -n auto
    fi
    # Side by side: each is mostly one process at a time on one core and little work for the GPU.
    local left=$((LIMIT - 5 - SECONDS))
    [ -n "${REHEARSAL:-}" ] && left=400
    STARTED=$SECONDS
    local watched tool pids=()
    for watched in "${WATCHED[@]}"; do
        # shellcheck disable=SC2086
        "$SELF" _sanitize ${watched%% *} $left ${watched#* } >"$OUT/${watched%% *}.log" 2>&1 &
        pids+=($!)
    done
    for watched in "${!WATCHED[@]}"; do
        tool=${WATCHED[$watched]%% *}
        if wait "${pids[$watched]}"; then note ok "$tool"; else note failed "$tool"; fi
        grep -h -E "ERROR SUMMARY|RACECHECK SUMMARY|passed|failed" "$OUT/$tool.log" | cut -c 1-200
    done
    finish 1
}

part_2() {
    SECONDS=0
    rm -f "$OUT"/{measure.log,results.json,warp.log}
    step "missing packages" 60 measure.log "$SELF" _install_missing
    [ -z "${REHEARSAL:-}" ] && step "backends triton and cuda" 60 measure.log "$SELF" _require_backends
    local options=(--seconds $((LIMIT - 25 - SECONDS)))
    if [ -n "${REHEARSAL:-}" ]; then
        options=(--rehearse --seconds 560)
    else
        toolkit
        # Compiled on another core meanwhile; left out if that fails.
        setsid "$PYTHON" -c 'import accelerated_scan.warp' >"$OUT/warp.log" 2>&1 </dev/null &
    fi
    STARTED=$SECONDS
    timeout -k 10 $((LIMIT - SECONDS)) "$PYTHON" -m benchmarks.gpu --out "$OUT/results.json" "${options[@]}" \
        2>&1 </dev/null | tee -a "$OUT/measure.log" | cut -c 1-240
    if [ "${PIPESTATUS[0]}" = 0 ]; then note ok "measurements"; else note failed "measurements"; fi
    finish 2
}

case ${1:-} in
    wheels) wheels ;;
    1) require_gpu && part_1 ;;
    2) require_gpu && part_2 ;;
    rehearse)
        export REHEARSAL=1 TRITON_INTERPRET=1
        status=0
        (part_1) || status=1
        (part_2) || status=1
        exit $status
        ;;
    _install_missing | _build | _require_backends | _describe | _sanitize) # the steps, as processes that can be stopped
        "${1#_}" "${@:2}"
        ;;
    *)
        sed -n '2,13s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
        exit 2
        ;;
esac
