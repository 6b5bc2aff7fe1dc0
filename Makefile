# The commands of autoprune's developers and of whoever tries it. Each makes .venv by itself.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest
PROCESSES ?= 2

.PHONY: demo test test-slow test-chaos test-gpu check format clean

demo: $(STAMP)  ## a whole sweep on this machine: about five minutes
	$(BIN)/autoprune sweep experiment=digits_vgg

test: $(STAMP)  ## every test that takes seconds: about twelve minutes on two cores
	$(PYTEST) -n $(PROCESSES) --dist loadfile --max-worker-restart 0 -m "not slow and not gpu and not chaos"

test-slow: $(STAMP)  ## the tests that take longer
	$(PYTEST) -m "slow"

test-chaos: $(STAMP)  ## a sweep through every fault of a real cluster
	$(PYTEST) -m "chaos"

test-gpu: $(STAMP)  ## the tests that need a CUDA device
	$(PYTEST) -m "gpu"

check: $(STAMP)  ## the gate: lint, format, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Made anew where the requirements changed: what an older .venv holds may not fit them
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("autoprune needs Python 3.11 or newer; set PYTHON=") if sys.version_info < (3, 11) else None'
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist
