# make demo [VIDEO=path]   a video from file to logits, whole and frame by frame, and the table against ViViT-L
# make test                linters, type checker, sanitizers, the GPU kernels executed on the CPU and compiled, tests
# make aot                 every Triton kernel compiled for five GPU architectures (make test: for sm_90 alone)
# make bench [ARGS="ops --quick"]   speed, memory and FLOPs beside others: python -m benchmarks --help
# make lint | sanitize | interpret | simt | clean
#
# Everything runs in .venv, which is made on first use and follows pyproject.toml, constraints.txt and csrc/.
# A fresh machine needs Python 3.10+, a C++ compiler and make. On Linux the package index's torch brings CUDA
# libraries; for the smaller CPU build: make TORCH_INDEX=https://download.pytorch.org/whl/cpu
# With nvcc the CUDA kernels are built too, for the GPU of this machine (none: sm_90a); CUDA_ARCHITECTURES names others.

PYTHON ?= python3
TORCH_INDEX ?=
VIDEO ?=
CUDA_ARCHITECTURES ?= $(if $(shell command -v nvidia-smi),native,90a-real)
# Python keeps its bytecode here even where the environment says not to: importing PyTorch without it takes seconds, and
# the tests start many processes.
unexport PYTHONDONTWRITEBYTECODE
export CMAKE_ARGS ?= -DTRECVIT_CUDA_ARCHITECTURES=$(CUDA_ARCHITECTURES)

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
SOURCES := CMakeLists.txt setup.py $(wildcard csrc/*.* csrc/*/*.*)
SIMULATED := build/simt
SANITIZED := build/sanitized
# Tests of the op suite that the Triton kernels run in its interpreter: every case, hostile inputs, chunks, traffic. What
# is about PyTorch (tracing, transforms) or takes hours there (gradcheck) runs on a GPU.
INTERPRETED := $(addprefix tests/ops/test_,values.py hostile.py chunks.py memory.py errors.py second_derivatives.py \
    triton_traffic.py interpreter.py)
# The same for the CUDA kernels in tests/simt, which is fast enough for gradcheck.
SIMULATION := $(addprefix tests/ops/test_,values.py hostile.py chunks.py memory.py errors.py second_derivatives.py \
    gradcheck.py thread_orders.py residual_norm.py long.py mixer_again.py) \
    tests/test_simt.py tests/models/test_cuda_streaming.py
# One process per core, each with one OpenMP thread: the tests' tensors are too small for more. Tests that are about
# threads set their number. JOBS=0: one process, as plain pytest.
JOBS ?= auto
MOST ?= 8
PARALLEL := -n $(JOBS) --maxprocesses $(MOST)
pytest = OMP_NUM_THREADS=1 $(BIN)/pytest

.PHONY: demo test lint sanitize interpret simt aot bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.native
	$(BIN)/trecvit demo $(if $(VIDEO),"$(VIDEO)")

# Side by side, as installs, linters, the last compiler of a build and the start and end of a session all leave cores
# idle; what each prints is kept together. The tests come last, so that pytest's closing line does too.
test:
	$(MAKE) --no-print-directory -j3 $(if $(filter output-sync,$(.FEATURES)),--output-sync) MOST=3 lint sanitize interpret simt
	$(pytest) $(PARALLEL)

lint: $(VENV)/.native
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A second copy of the extension, built with AddressSanitizer and UBSan, runs the hostile cases of the ops. Python
# itself is not instrumented, so the sanitizers' libraries are preloaded (GCC's; libstdc++ too, for its exceptions).
sanitize: $(VENV)/.native $(SANITIZED)/.built
	LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so) $$(c++ -print-file-name=libstdc++.so.6)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=tests/sanitize \
	TRECVIT_EXAMPLES=15 TRECVIT_NATIVE_FILE="$$(echo $(SANITIZED)/lib/trecvit_kernels/_native.*.so)" \
	$(pytest) $(PARALLEL) -q --capture=sys -p sanitized_native -p no:cacheprovider tests/ops -m sanitize

$(SANITIZED)/.built: $(VENV)/.tools $(SOURCES)
	CMAKE_ARGS="-DTRECVIT_SANITIZE=address,undefined -DTRECVIT_CUDA=OFF" $(BIN)/python setup.py --quiet build_ext \
	    --build-lib $(SANITIZED)/lib --build-temp $(SANITIZED)/cmake
	@touch $@

# Triton decides at the import of a kernel whether it is compiled or interpreted, so this is a session of its own.
interpret: $(VENV)/.native
	TRITON_INTERPRET=1 $(pytest) $(PARALLEL) -q -p no:cacheprovider --backend triton -m "not same_for_kernels" $(INTERPRETED)

# The CUDA kernels as host code: every thread a fibre, shared memory, barriers and copies watched.
simt: $(VENV)/.native $(SIMULATED)/.built
	TRECVIT_SIMT="$$(echo $(CURDIR)/$(SIMULATED)/_simt.*.so)" $(pytest) $(PARALLEL) -q -p no:cacheprovider --backend cuda \
	    -m "not same_for_kernels" $(SIMULATION)

$(SIMULATED)/.built: $(VENV)/.tools $(SOURCES) $(wildcard tests/simt/*)
	$(BIN)/cmake -S . -B $(SIMULATED) -G Ninja --log-level=WARNING -DCMAKE_BUILD_TYPE=Release -DTRECVIT_CUDA=OFF -DTRECVIT_SIMT=ON \
	    -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	    -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
	$(BIN)/cmake --build $(SIMULATED) --target _simt
	@touch $@

aot: $(VENV)/.native
	TRECVIT_AOT=all $(pytest) $(PARALLEL) -q tests/ops/test_triton_aot.py

bench: $(VENV)/.native
	$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf build dist *.egg-info trecvit_kernels/_native.*.so $(VENV)

# The build tools first: the extension is compiled while the packages are installed, which takes one core.
$(VENV)/.tools: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) setuptools pybind11 cmake ninja
	@touch $@

$(VENV)/.module: $(VENV)/.tools $(SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

$(VENV)/.torch: $(VENV)/.tools
	$(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	@touch $@

# An editable install builds the extension too: only when its build tree is ready, so that nothing is left to do.
$(VENV)/.deps: $(VENV)/.torch | $(VENV)/.module
	$(PIP) --no-build-isolation -e '.[video,triton,benchmarks,test,dev]'
	$(PIP) --no-deps timm  # for one test; its torchvision, which that test does without, would bring another torch
	@touch $@

$(VENV)/.native: $(VENV)/.deps $(VENV)/.module
	@touch $@
