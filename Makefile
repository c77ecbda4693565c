# `make test` and `make demo` need git, make and Python 3.11 or newer. Everything else goes into .venv, inside this
# folder; an interrupted installation leaves no stamp and is taken up again by the next call.
VENV := .venv
PY := $(VENV)/bin/python
TORCH := $(shell grep '^torch==' constraints.txt)
# A changed requirement, a changed constraint or a moved folder asks for a new installation.
KEY := $(shell (pwd; cat pyproject.toml constraints.txt) | cksum | cut -d' ' -f1)
NEW := import sys; sys.exit(sys.version_info < (3, 11))
# Without a Python of its own that runs, the environment's stamps mean nothing.
ifneq ($(shell $(PY) -c 'print("runs")' 2>/dev/null),runs)
STALE := stale
endif

.PHONY: help test demo bench pretrain check docs clean stale

help:
	@echo "make test    run the tests (ARGS='-m slow' for the long ones)"
	@echo "make demo    fine-tune the shipped model on bundled data, next to one from scratch, and simulate (ARGS='--frames 20')"
	@echo "make bench   speed and memory next to DeePMD-kit, which it installs (ARGS='--quick' for two minutes)"
	@echo "make pretrain DATASETS=folder FOLDER=runs/pbe    pretrain the shipped model anew (three hours), or go on with it"
	@echo "make check   style, types and layering"
	@echo "make docs    build the documentation into site/"
	@echo "make clean   remove .venv, .bench and caches; never your runs"

test: $(VENV)/.test-$(KEY)
	$(PY) -m pytest --numprocesses auto --maxprocesses 4 $(ARGS)

demo: $(VENV)/.all-$(KEY)
	$(PY) examples/demo.py $(ARGS)

bench: $(VENV)/.all-$(KEY)
	$(PY) benchmarks/speed.py $(ARGS)

pretrain: $(VENV)/.all-$(KEY)
	$(PY) pretraining/pretrain.py $(DATASETS) $(FOLDER) $(ARGS)

check: $(VENV)/.dev-$(KEY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

docs: $(VENV)/.docs-$(KEY)
	$(PY) -m mkdocs build --strict

# torch first, and everything after it under the constraints, so that no dependency brings another torch.
$(VENV)/.%-$(KEY): $(VENV)/.made
	@echo "Installing $(TORCH) and what dpa1 needs into $(VENV)"
	$(PY) -m pip install $(TORCH)
	$(PY) -m pip install --quiet -c constraints.txt -e '.[$*]'
	@touch $@

$(VENV)/.made: $(STALE)
	@if $(PY) -c '' 2>/dev/null; then \
	  $(PY) -c '$(NEW)' || { echo "$(VENV) holds a Python older than 3.11; remove that folder and call make again" >&2; exit 1; }; \
	  exec $(PY) -m venv $(VENV); \
	fi; \
	for p in $(PYTHON) python3 python python3.13 python3.12 python3.11 python3.14; do \
	  if "$$p" -c '$(NEW)' 2>/dev/null; then \
	    echo "Creating $(VENV) with $$("$$p" --version); the first installation takes a few minutes"; \
	    "$$p" -m venv --clear $(VENV) && exit 0; \
	    echo "$$p cannot create a virtual environment; on Debian and Ubuntu install python3-venv, then call make again" >&2; \
	    exit 1; \
	  fi; \
	done; \
	echo "dpa1 needs Python 3.11 or newer, and none was found (python3 is: $$(python3 --version 2>&1))." \
	  "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; \
	exit 1
	@touch $@

clean:
	rm -rf $(VENV) .bench .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build dist site
	find src tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
