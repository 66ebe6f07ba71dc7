# Everything lives in this checkout: the environment is .venv, and removing that folder undoes it all. So pip keeps no
# cache of what it downloads (3 GB), unless PIP_CACHE_DIR says where.
PYTHON ?= python3
PIP = .venv/bin/python -m pip install -qq --disable-pip-version-check $(if $(PIP_CACHE_DIR),,--no-cache-dir)
export MPLCONFIGDIR := $(CURDIR)/.venv/matplotlib

# Describe a region of the sample picture.
run: .venv/.installed
	@.venv/bin/gar describe src/gar/assets/sample.png --box 407,246,509,347

# Everything that is checked, the tests last.
test: .venv/.installed-dev
	@.venv/bin/ruff check --quiet .
	@.venv/bin/ruff format --quiet --check .
	@.venv/bin/pyright
	@.venv/bin/python -m pytest --quiet

.venv/.installed: pyproject.toml
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (once, some minutes)" >&2
	@$(PIP) --editable .
	@touch $@

.venv/.installed-dev: .venv/.installed
	@$(PIP) --editable ".[bench,dev,scenes,train]"
	@touch $@

.PHONY: run test
