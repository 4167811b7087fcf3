# Everything runs in .venv, which the first target makes; nothing else has to be installed by hand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
ENGINE ?= docker
TESTS ?= tests

.DEFAULT_GOAL := help
.PHONY: help install run compare test test-all lint compile images sbom audit deploy golden readmes bench clean

help:                       ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

install: $(VENV)/installed  ## make .venv, with everything and the command llm-retriever in its bin/

run: $(VENV)/installed      ## run the demo on this machine: llm-retriever run; ARGS="corpus_uri=DIR" changes parameters
	$(BIN)/llm-retriever run $(ARGS)

compare: $(VENV)/installed  ## compare methods on this machine: llm-retriever compare; ARGS="--variants ql-ablation" chooses others
	$(BIN)/llm-retriever compare $(ARGS)

test: lint                  ## linters, types and the fast tests, in minutes; TESTS=tests/mining runs a part
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m "not slow" $(TESTS)

# Files stay whole here: what a slow file sets up is dear. 5 = no slow tests in this part.
test-all: test              ## make test, then the slow tests, and the readers with 3,000 damaged inputs instead of 150
	LLM_RETRIEVER_FUZZ=3000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "slow or fuzz" $(TESTS) \
	  || [ $$? -eq 5 ]

lint: $(VENV)/installed     ## linters alone
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

compile: $(VENV)/installed  ## write build/train_retriever.yaml: llm-retriever compile; ARGS="--preset NAME" bakes a preset in
	$(BIN)/llm-retriever compile $(ARGS)

images:                     ## build both images; REGISTRY=host/path TAG=1 PUSH=1 ENGINE=podman BUILD_ARGS="--build-arg …"
	$(PYTHON) -m images.build --engine $(ENGINE) $(if $(REGISTRY),--registry $(REGISTRY)) $(if $(TAG),--tag $(TAG)) \
	  $(if $(PUSH),--push) $(BUILD_ARGS)

sbom: $(VENV)/installed     ## write what is in the images, build/sbom/*.cdx.json; ARGS="--from lock" where there is no engine
	$(BIN)/python -m images.sbom --engine $(ENGINE) $(ARGS)

audit: $(VENV)/installed    ## check what make sbom wrote for known vulnerabilities; ARGS="--vulnerability-service osv"
	$(BIN)/python -m images.audit $(ARGS)

deploy:                     ## apply an overlay to the current cluster; OVERLAY=standalone, see docs/operations.md
	$(if $(OVERLAY),,$(error name the overlay: make deploy OVERLAY=$(subst $(eval ) ,|,$(notdir $(wildcard manifests/overlays/*)))))
	kubectl apply -k manifests/overlays/$(OVERLAY)

golden: $(VENV)/installed   ## accept the compiled pipelines as they are now
	$(BIN)/python -m tests.pipelines.golden

readmes: $(VENV)/installed  ## write the components' READMEs and docs/api.md anew from signatures and docstrings
	$(BIN)/python -m pipelines.readmes
	$(BIN)/python -m tests.api_reference

bench: $(VENV)/installed    ## measure against peers and the machine, docs/performance.md; ARGS="--only tune" does a part
	$(BIN)/python benchmarks/bench.py $(ARGS)

clean:                      ## remove runs, caches and checkpoints, but not .venv
	rm -rf build .pytest_cache .ruff_cache .mypy_cache

# torch comes first: deepspeed is a source package that needs it, and the same pin brings the CUDA build where that is the default.
$(VENV)/installed: requirements.lock requirements-alone.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("llm-retriever needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-alone.lock
	$(BIN)/python -m pip install --quiet --no-deps -e .
	touch $@
