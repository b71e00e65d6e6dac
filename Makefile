# Everything starts from `make setup`, which the other targets call; it does nothing when nothing changed.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PLATFORM := $(shell nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
LOCK := requirements/$(PLATFORM).lock
STAMP := $(VENV)/.$(PLATFORM)-installed
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: setup serve test test-long lint format lock clean

setup: $(STAMP)

# The CPU build of torch is not on PyPI: a local wheel wins, PyTorch's own index comes next.
$(STAMP): $(LOCK) pyproject.toml
	$(PYTHON) -m venv $(VENV)
	grep '^torch==' $(LOCK) > $(VENV)/torch.txt
	$(BIN)/pip install --quiet --no-deps -r $(VENV)/torch.txt \
		|| $(BIN)/pip install --quiet --no-deps --index-url $(TORCH_CPU_INDEX) -r $(VENV)/torch.txt
	$(BIN)/pip install --quiet --no-deps -r $(LOCK)
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

serve: setup
	$(BIN)/logit-fusion serve

test: setup
	$(BIN)/pytest -m "not long"

test-long: setup
	$(BIN)/pytest --timeout=3600

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Needs `uv`; the extra index is where the CPU build of torch comes from when no local wheel is at hand.
UV_COMPILE = uv pip compile pyproject.toml --extra dev --override requirements/left-out.txt --python-version 3.11 \
	--python-platform x86_64-manylinux_2_28 --no-header --no-annotate --quiet --upgrade
lock: setup
	UV_FIND_LINKS="$$PIP_FIND_LINKS" $(BIN)/$(UV_COMPILE) --extra cpu --constraint requirements/torch-cpu.txt -o requirements/cpu.lock \
		|| $(BIN)/$(UV_COMPILE) --extra cpu --torch-backend cpu -o requirements/cpu.lock
	$(BIN)/$(UV_COMPILE) --extra cuda -o requirements/cuda.lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
