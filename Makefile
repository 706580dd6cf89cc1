# `make demo` and `make test` work on a machine that has Python 3.10+ and nothing else: they create .venv, install, and run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo demo-detect test test-all dev links lint gpu clean

demo: $(VENV)/.train
	$(BIN)/attnzoo train classification/digits_biformer.yaml output=runs/demo
	@echo "next: $(BIN)/attnzoo predict runs/demo docs/three.png    $(BIN)/attnzoo list    $(BIN)/attnzoo --help"

demo-detect: $(VENV)/.detect
	$(BIN)/attnzoo train detection/digits_faster_rcnn.yaml output=runs/demo-detect
	@echo "next: $(BIN)/attnzoo eval runs/demo-detect --draw runs/demo-detect/drawn"

# Two processes of one thread each: with more, threads of one process wait for those of the other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test: $(VENV)/.dev
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.dev
	$(PYTEST)

# On a machine with a GPU: the tests of the kernels run on it, then the benchmark writes benchmarks/results/kernels_cuda.*
# Slow tests need no GPU: they compile for those that are not there, or run what `make test-all` runs anywhere.
gpu: $(VENV)/.dev
	$(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available() and "make gpu: there is no GPU that torch can use here")'
	$(BIN)/python -m pytest -m "not slow" tests/kernels
	$(BIN)/python -m attnzoo.kernels.bench --device cuda

# For work on attnzoo: everything installed, and an editor that finds `attnzoo.*` in the checkout.
dev: $(VENV)/.dev links
	@echo "activate it: source $(BIN)/activate"

# The import name is a mapping of folders, which only Python's import system knows: editors and type checkers follow links.
links:
	mkdir -p .types/attnzoo
	ln -sfn $(addprefix ../../,backbones blocks configs kernels train $(wildcard package/*.py package/py.typed)) .types/attnzoo

lint: $(VENV)/.dev
	$(BIN)/python -m pytest tests/test_style.py

# One virtual environment; a stamp for each set of extras says that it is installed and newer than pyproject.toml.
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "attnzoo needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: pyproject.toml | $(VENV)/bin/python
	$(PIP) install -e ".[train]"
	touch $@

$(VENV)/.detect: pyproject.toml | $(VENV)/bin/python
	$(PIP) install -e ".[detect]"
	touch $@ $(VENV)/.train

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(PIP) install -e ".[all,dev]"
	# mmcv and albumentations bring two builds of OpenCV into one folder; one needs a display's library.
	$(BIN)/python -c "import cv2" || $(PIP) install --force-reinstall --no-deps opencv-python-headless
	touch $@ $(VENV)/.train $(VENV)/.detect

clean:
	rm -rf $(VENV) .types .cache build dist *.egg-info
