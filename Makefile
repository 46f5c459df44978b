# Needs make and Python 3.11 or newer; everything else goes into .venv.

VENV := .venv
BIN := $(VENV)/bin
PYTHONS := python3.13 python3.12 python3.11 python3
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt
WORKERS := $(shell echo $$(($$(getconf _NPROCESSORS_ONLN) + 1)))  # some tests wait for processes
PINS := pyproject.toml constraints.txt

# Tests start many processes; without compiled files each would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-live coverage docs format clean
.DELETE_ON_ERROR:

# The main job on drawn images, in a few minutes.
demo: $(VENV)/installed
	rm -rf demo-run
	$(BIN)/oneround demo --out demo-run

# Everything that a change must pass.
test: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# The walk-through with Flower's own programs, which takes some minutes more.
test-live: $(VENV)/installed-dev
	$(BIN)/pytest -m live

# Which lines and branches no test runs; slower than `make test`.
coverage: $(VENV)/installed-dev
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
	  --cov --cov-report=term-missing:skip-covered

# The documentation as a site, in site/.
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Remove all that these targets made.
clean:
	rm -rf $(VENV) demo-run site build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage*
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/installed: $(BIN)/python $(PINS)
	$(INSTALL) -e .
	touch $@

$(VENV)/installed-dev: $(BIN)/python $(PINS)
	$(INSTALL) -e '.[dev]'
	touch $@ $(VENV)/installed $(VENV)/installed-docs

$(VENV)/installed-docs: $(BIN)/python $(PINS)
	$(INSTALL) -e '.[docs]'
	touch $@ $(VENV)/installed

# The first Python that is new enough and can make environments; a shim that leads nowhere fails.
$(BIN)/python:
	@for python in $(PYTHONS); do \
	  if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	      2>/dev/null; then \
	    echo "$$python -m venv $(VENV)"; \
	    exec $$python -m venv $(VENV); \
	  fi; \
	done; \
	echo "No Python 3.11 or newer with venv found (tried $(PYTHONS))."; \
	echo "Debian: apt install python3 python3-venv. macOS: brew install python."; \
	exit 1
