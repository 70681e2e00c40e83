# Needs make, Python 3.10 or newer with venv, and pip's usual way to packages. Everything is installed into $(VENV).

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
ARGS ?=
CXX ?= g++
SEED ?= 1
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
SENTENCES := "Where is the station?" "I would like a cup of coffee, please." "She has been learning German for two years."

.DEFAULT_GOAL := help
.PHONY: help demo test test-long test-kernels test-transformers test-peers fuzz soak gpu bench bench-gpu figures lint \
	format dist clean

ifeq ($(origin PATH),command line)
$(error PATH says where commands are: for a checkout of transformers write CHECKOUT=$(PATH))
endif

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=$(PYTHON)  VENV=$(VENV)  CONSTRAINTS=$(CONSTRAINTS)  ARGS=(more arguments for pytest)"
	@echo "  PARALLEL= runs the tests in one process."
	@echo "  Another torch, say one for another CUDA: its own constraints file and its own VENV."

demo: $(VENV)/.package ## translate three sentences from English to German with the model that ships
	$(BIN)/bertgen run --model demo $(SENTENCES)

test: $(VENV)/.tools ## the test suite; needs no GPU and no network
	$(PYTEST) $(PARALLEL) $(ARGS)

test-long: $(VENV)/.tools ## the test suite and the long tests
	$(PYTEST) -m "not network and not gpu" $(PARALLEL) $(ARGS)
	$(INTERPRETED) $(PARALLEL) $(ARGS)

test-kernels: $(VENV)/.tools ## all cases of the kernels in Triton's interpreter, and all variants compiled for GPUs
	$(INTERPRETED) $(PARALLEL) $(ARGS)
	$(PYTEST) -m long tests/kernels/test_kernels.py $(ARGS)

test-transformers: $(OTHER)/constraints.txt ## the drop-in under the oldest transformers supported
	$(MAKE) $(OTHER)/.tools VENV=$(OTHER) CONSTRAINTS=$<
	$(OTHER)/bin/python -m pytest tests/dropin $(PARALLEL) $(ARGS)

test-peers: $(VENV)/.tools ## transformers' own tests, plain, accelerated and on our classes; CHECKOUT=its source tree
	$(INSTALL) parameterized httpx timeout-decorator
	$(BIN)/python tests/support/transformers_suite.py $(CHECKOUT) $(ARGS)

# Without the pins of what each transformers has bounds of its own for.
.venv-transformers-%/constraints.txt: constraints.txt
	mkdir -p $(@D)
	sed -e 's/^transformers==.*/transformers==$*/' -e '/^huggingface_hub==/d' -e '/^tokenizers==/d' $< > $@

fuzz: $(VENV)/.tools ## the C++ under the sanitizers, and a million operations of the allocator against its twin
	mkdir -p build
	$(FUZZ) -fsanitize=address,undefined $(FUZZ_ALLOCATOR) -o build/fuzz-allocator && build/fuzz-allocator 10000000 $(SEED) 1
	$(FUZZ) -fsanitize=thread $(FUZZ_ALLOCATOR) -o build/fuzz-threads && build/fuzz-threads 1000000 $(SEED) 8
	$(FUZZ) -fsanitize=address,undefined $(FUZZ_KERNELS) -o build/fuzz-kernels && build/fuzz-kernels 20000 $(SEED)
	BERTGEN_OPERATIONS=1000000 $(PYTEST) tests/cache/test_block_allocator.py -k BothKinds $(ARGS)

soak: $(VENV)/.tools ## jobs of 10,000 lines, killed and interrupted 50 times each, then resumed
	BERTGEN_KILLS=50 BERTGEN_SEED=$(SEED) $(PYTEST) tests/jobs/test_resume.py --timeout 1800 $(PARALLEL) $(ARGS)

gpu: ## what needs a CUDA device, with the Python that is there: installs nothing
	$(PYTHON) -m pytest -m gpu tests/test_gpu.py $(ARGS)
	$(PYTHON) -m bertgen bench ops --device cuda --cases none --json build/bench/ops-cuda.json

bench: $(VENV)/.tools ## operators, generation, scaling and training beside others', in 10 minutes; a page in build/bench
	$(BIN)/bertgen bench suite --level quick --output build/bench $(ARGS)

bench-gpu: ## the same on a CUDA device in 9 minutes, with the Python that is there: installs nothing
	$(PYTHON) -m bertgen bench suite --level quick --device cuda --output build/bench $(ARGS)

figures: $(VENV)/.tools ## the figures of README.md and docs/ anew, in an hour on a quiet machine; PAIRS=train.tsv
	rm -f bench/results/*-cpu.json
	$(BIN)/bertgen bench suite --level full --output bench/results --report docs/report
	$(BIN)/bertgen bench dropin --json bench/results/dropin-cpu.json
	$(BIN)/python -m bertgen.bench.overhead --json bench/results/overhead-cpu.json
	$(BIN)/python -m bertgen.bench.tokenizer --input $(PAIRS) --lines 100000 --json bench/results/tokenizer-cpu.json
	$(BIN)/python -m bertgen.bench.tables

lint: $(VENV)/.tools ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.tools ## let ruff format and mend what it can
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

dist: $(VENV)/.tools ## build the sdist, and the wheel from it, into dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation

clean: ## remove what was built and the caches, not the environment
	rm -rf build dist *.egg-info .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find bench bertgen kernels tests -name __pycache__ -prune -exec rm -rf {} +

# torch comes first: the C++ extension is built against the one that is there.
$(VENV)/.package: pyproject.toml setup.py $(CONSTRAINTS) $(wildcard csrc/*)
	@echo "Installing bertgen into $(VENV); the first time takes minutes."
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) "setuptools>=77" torch
	$(INSTALL) --no-build-isolation --editable .
	@touch $@

# What is installed already is not built again: this adds what the extra names.
$(VENV)/.tools: $(VENV)/.package
	$(INSTALL) "bertgen[test]"
	@touch $@
