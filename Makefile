# The only commands to know. CI calls `make check` and `make test`.
#
#   make demo    count torn reads beside none, and watch a network learn on two worker processes
#   make test    every test, the C ones under sanitizers included
#   make proof   the tests of docs/guarantees.md, with figures; in less than 20 minutes
#   make check   ruff, clang-format, mypy (strict) and the layering test
#   make dist    wheel and sdist, audited, and tried in clean environments
#   make test-versions  the tests of share with each CPython that is found, and the oldest and the newest NumPy
#   make bench   the benchmarks: ratios against a limit or a peer, taken in one run
#   make fuzz    the fuzzers, FUZZ_SECONDS (60) for each target: libFuzzer (clang) and atheris
#   make sanitize  the extension under AddressSanitizer, UBSan and ThreadSanitizer, over the tests of share
#   make soak    the long variants of the tests, then fuzz, sanitize, and the C tests for aarch64
#   make clean   remove everything that the other commands made

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

# Half of the time of the tests goes into interpreters that start: let them keep what they compile, whatever the
# environment says.
unexport PYTHONDONTWRITEBYTECODE

# uv downloads many packages at a time, and compiles none. It does not read pip's settings, so it gets what pip knows of
# folders with packages, and pip is there for what uv cannot find.
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python \
    $$(for place in $$($(BIN)/python -m pip config get global.find-links 2>&-) $(PIP_FIND_LINKS); do echo --find-links "$$place"; done) \
    $(if $(PIP_INDEX_URL),--default-index $(PIP_INDEX_URL))
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
install = { $(PIP) uv && $(UV) -c constraints.txt -e '.[$(EXTRAS)]'; } || $(PIP) -c constraints.txt -e '.[$(EXTRAS)]'

.PHONY: help demo test test-c proof check docs dist test-versions bench soak fuzz sanitize sanitize-address sanitize-thread clean venv
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' Makefile

# The environment is built again when its sources have changed.
SOURCES := pyproject.toml setup.py constraints.txt $(wildcard csrc/*.c csrc/*.h)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "untorn needs Python 3.11 or later; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: EXTRAS := test,check,docs
$(VENV)/.installed: $(SOURCES) | $(VENV)/bin/python
	$(install)
	@touch $@

$(VENV)/.bench-installed: EXTRAS := bench
$(VENV)/.bench-installed: $(VENV)/.installed
	$(install)
	@touch $@

venv: $(VENV)/.installed

# Only what the demo uses: not PyTorch, JAX, Ray and the tools of the tests. Where those are there already, they stay.
$(VENV)/.demo-installed: EXTRAS := cli,train,digits
$(VENV)/.demo-installed: $(SOURCES) | $(VENV)/bin/python
	$(install)
	@touch $@

demo: $(or $(wildcard $(VENV)/.installed),$(VENV)/.demo-installed)
	@echo 'Two processes read an array while another one keeps changing all of it. Torn: half old, half new.'
	@$(BIN)/python examples/torn.py --seconds 2
	@echo
	@echo 'A network learns handwritten digits: two worker processes read whole versions of its weights.'
	@$(BIN)/untorn train digits --workers 2

# Tests wait for other processes half of the time, so two processes for each core, at most eight. Each file runs in one
# of them, and in order: those marked `early`, then as testpaths in pyproject.toml says. At the end come the tests that
# took longest.
PARALLEL := -n $(shell cores=$$(nproc); echo $$((cores < 4 ? 2 * cores : 8))) --dist loadfile --no-loadscope-reorder --durations=10 --durations-min=5

# Makes the same random choices in every run; `make soak` and pytest itself make new ones and print their seed.
test: export UNTORN_SEED ?= 883257245
test: test-c $(VENV)/.installed
	$(BIN)/python -m pytest $(PARALLEL)

test-c:
	$(MAKE) -j2 -C tests/c
	$(MAKE) -j2 -C tests/fuzz replay

# The suites that test the promises, short runs of the fuzzers, other processors, and other libraries under the same kills.
proof: export UNTORN_SEED ?= 883257245
proof: test-c $(VENV)/.bench-installed
	$(MAKE) -C tests/c aarch64
	$(BIN)/python -m pytest $(PARALLEL) --figures tests/property tests/faults tests/conformance tests/fuzz \
	    tests/unit/share
	$(BIN)/python -m pytest $(PARALLEL) --figures -m "soak or not soak" tests/model
	$(MAKE) fuzz FUZZ_SECONDS=10
	$(BIN)/python -m benchmarks.survival

C_FILES := $(wildcard $(addsuffix /*.[ch],csrc tests/c tests/fuzz tests/virtual_nodes))

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run -Werror $(C_FILES)
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_layers.py

# A link to a page, a heading, a source or a public name that does not exist is a warning, too.
docs: $(VENV)/.installed
	$(BIN)/python -m sphinx -b html -W -n --keep-going -q docs build/docs
	@echo "open $(CURDIR)/build/docs/index.html"

$(VENV)/.dist-installed: EXTRAS := dist
$(VENV)/.dist-installed: $(VENV)/bin/python pyproject.toml
	$(install)
	@touch $@

dist: $(VENV)/.dist-installed
	$(BIN)/python tests/dist.py

test-versions: $(VENV)/bin/python
	$(BIN)/python tests/versions.py

bench: $(VENV)/.bench-installed
	$(BIN)/python -m benchmarks

soak: $(VENV)/.installed
	$(BIN)/python -m pytest -m soak
	$(MAKE) fuzz
	$(MAKE) sanitize
	$(MAKE) -C tests/c aarch64

FUZZ_SECONDS ?= 60
fuzz: $(VENV)/.installed
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check atheris \
	    || echo 'make fuzz: atheris is not available here; the corpus is mutated without coverage feedback'
	@if command -v clang >/dev/null; then $(MAKE) -C tests/fuzz fuzz SECONDS=$(FUZZ_SECONDS); \
	    else echo 'make fuzz: clang is not installed, so there is no libFuzzer; the C targets get seeded mutations'; $(MAKE) -C tests/fuzz replay CHANGES=20000; fi
	$(BIN)/python tests/fuzz/fuzzing.py --seconds $(FUZZ_SECONDS)

# Builds the extension beside the package, where it is found first; tests/sanitize.py says what it runs, and why.
sanitize: sanitize-address sanitize-thread
sanitize-address sanitize-thread: sanitize-%: $(VENV)/.installed
	$(BIN)/python tests/sanitize.py $*

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info src/untorn/_core*.so
	$(MAKE) -C tests/c clean
	$(MAKE) -C tests/fuzz clean
	$(MAKE) -C tests/virtual_nodes clean
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
