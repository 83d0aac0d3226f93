# make setup | demo | test | test-slow | lint | bench
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
export OMP_WAIT_POLICY ?= passive
# A file of tests stays in one process: what it prepares once is prepared once.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: setup demo test test-slow lint bench clean

setup: $(VENV)/.ready

# torch first and by its exact version: a range, or another package's wish for it, may bring another build.
$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "installing into $(VENV): 2 GB, a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/groundup run recipes/python_docs.yaml $(if $(SMOKE),--smoke)

test: setup
	$(PYTEST) -m "not slow"

test-slow: setup
	$(PYTEST) -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: setup
	$(BIN)/python benchmarks/run.py $(if $(ROW),--row $(ROW)) $(if $(ALL),--all) $(if $(TEXT),--text $(TEXT)) \
		$(if $(DATA),--data $(DATA)) $(if $(MODEL),--model $(MODEL)) $(if $(MINUTES),--minutes $(MINUTES))

clean:
	rm -rf $(VENV) build dist *.egg-info
