# make demo, make test: environment, build, and the job. A virtual environment that is active is used; else .venv is made.
PYTHON ?= python3
ifdef VIRTUAL_ENV
  VENV := $(VIRTUAL_ENV)
else
  VENV := .venv
endif
BIN := $(VENV)/bin
STAMPS := $(VENV)/.lconv_fast
# Built modules belong to one source tree and one environment.
BUILT := $(STAMPS)/built-$(shell pwd | cksum | cut -d' ' -f1)
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: env build demo test docs check-kernels sanitize lint format clean

env: $(STAMPS)/env
build: $(BUILT)

$(STAMPS)/venv:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	mkdir -p $(STAMPS) && touch $@

# torch first and alone: the constraint picks its version, and nothing after it may change that.
$(STAMPS)/env: constraints.txt pyproject.toml | $(STAMPS)/venv
	$(PIP) install -q -c constraints.txt torch numpy
	$(PIP) install -q -c constraints.txt "setuptools>=77" wheel "pybind11>=2.13" cmake ninja
	$(PIP) install -q -c constraints.txt typer rich scikit-learn scikit-image matplotlib scipy safetensors triton pytest pytest-benchmark pytest-xdist \
	  hypothesis sympy ruff mypy clang-format clang-tidy import-linter mkdocs-material "mkdocstrings[python]"
	touch $@

$(BUILT): $(STAMPS)/env setup.py CMakeLists.txt pyproject.toml $(wildcard csrc/*.* csrc/kernels/*.* csrc/kernels/*/*.*)
	PATH="$(abspath $(BIN)):$$PATH" $(PIP) install -q --no-build-isolation --no-deps -e .
	touch $@

demo: build
	$(BIN)/lconv-fast demo

# One thread for each of the workers: the tests' problems are small. Tests of threads set their own number.
test: build
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $$(nproc) --dist worksteal tests

# The site, into build/site; a warning is an error.
docs: build
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=$(CURDIR) $(BIN)/mkdocs build --strict --quiet

# The kernels against their definition, under sanitizers, for each instruction set (tests/native).
check-kernels: env
	PATH="$(abspath $(BIN)):$$PATH" cmake -S tests/native -B build/native -G Ninja
	PATH="$(abspath $(BIN)):$$PATH" cmake --build build/native
	PATH="$(abspath $(BIN)):$$PATH" ctest --test-dir build/native --output-on-failure

# The extension under sanitizers, for the instruction set of LCONV_KERNEL_SETS, with the operator tests and malformed calls.
SANITIZED := build/sanitized
sanitize: build
	PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B $(SANITIZED) -G Ninja -DPython_EXECUTABLE=$(abspath $(BIN))/python \
	  -DLCONV_SANITIZE=ON -DLCONV_KERNEL_SETS=avx2 -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(abspath $(SANITIZED))/site/lconv_fast
	PATH="$(abspath $(BIN)):$$PATH" cmake --build $(SANITIZED)
	cp -r lconv_fast/[!_]* lconv_fast/__init__.py $(SANITIZED)/site/lconv_fast/
	cd $(SANITIZED)/site && export LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 LCONV_FAST_CPU_CAPABILITY=avx2 && \
	  $(abspath $(BIN))/python -c "import lconv_fast._C as c; assert 'sanitized' in c.__file__, c.__file__" && \
	  $(abspath $(BIN))/python -m pytest -q $(CURDIR)/tests/test_layer.py $(CURDIR)/tests/generators/test_kinds.py $(CURDIR)/tests/test_paths.py \
	  $(CURDIR)/tests/test_graph_kernels.py -k "not thousand and not gpu" && \
	  OMP_NUM_THREADS=1 PYTHONPATH=. $(abspath $(BIN))/python $(CURDIR)/tests/attack/malformed.py 0 600 60

# clang-tidy reads how files are compiled from the build folder of cmake, which is configured and not built.
lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror csrc/*.h csrc/*.cpp csrc/kernels/*.h csrc/kernels/*.cpp csrc/kernels/*/*.h csrc/kernels/*/*.cpp tests/native/*.cpp
	PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B build/tidy -G Ninja -DPython_EXECUTABLE=$(abspath $(BIN))/python > /dev/null
	$(BIN)/clang-tidy --quiet -p build/tidy csrc/*.cpp csrc/kernels/kernels.cpp
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i csrc/*.h csrc/*.cpp csrc/kernels/*.h csrc/kernels/*.cpp csrc/kernels/*/*.h csrc/kernels/*/*.cpp tests/native/*.cpp

clean:
	rm -rf build *.egg-info lconv_fast/_C.*.so lconv_demo_report
	rm -f $(BUILT)
