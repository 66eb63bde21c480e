# make demo: set everything up and edit the bundled faces.  make test: set everything up and run the tests.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

.PHONY: demo test test-slow check gpu-proof install clean

demo: $(READY)
	$(VENV)/bin/asyrp demo --output out/demo

test: $(READY)
	$(VENV)/bin/python -m pytest

test-slow: $(READY)
	$(VENV)/bin/python -m pytest -m slow

check: $(READY)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

gpu-proof: $(READY)
	$(VENV)/bin/python -m benchmarks.on_gpu --output out/gpu-proof

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "asyrp needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) out
