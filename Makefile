# Every target does the set-up it needs. PYTHON names the interpreter that the virtual environment is made from.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test test-quick test-end-to-end test-full check format bench clean

setup: $(STAMP)

# torch first, so that no other package pulls in a different build of it.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[qnn,onnx,coreml,dev]'
	touch $(STAMP)

demo: setup
	$(BIN)/slm-export --recipe android-npu --output out/demo --force
	$(BIN)/slm-export generate out/demo --prompt "Once upon a time, there was a little" --max-tokens 40

# Two processes: most of a test's time is one thread's, and two cores are the least that a machine has.
test: setup
	$(MAKE) --jobs=2 --output-sync=target test-quick test-end-to-end

test-quick:
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" tests/unit tests/parity

test-end-to-end:
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" tests/end_to_end

test-full: setup
	$(BIN)/python -m pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python -m benchmarks.export_cost

clean:
	rm -rf $(VENV) out build dist
