# Each target does all its own set-up: it needs Python 3.11+ and make, nothing else.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin
# Test processes; each takes a file at a time and computes on one core.
WORKERS ?= 2
STAMP := $(VENV)/.installed-$(shell cksum < pyproject.toml | cut -d' ' -f1)

.PHONY: demo test lint bench install clean
.DEFAULT_GOAL := demo

install: $(STAMP)

# uv resolves and installs several times faster than pip; it is used from the environment itself.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"wildshape needs Python 3.11 or later; $(PYTHON) is {sys.version.split()[0]}")'
	@test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing wildshape into $(VENV) (PyTorch is several gigabytes) ..."
	@$(RUN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(RUN)/uv pip install --quiet --compile-bytecode --python $(RUN)/python --editable '.[dev]'
	@rm -f $(VENV)/.installed-*
	@touch $@

demo: $(STAMP)
	$(RUN)/wildshape demo $(ARGS)

test: $(STAMP)
	$(RUN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(STAMP)
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

bench: $(STAMP)
	$(RUN)/python -m benchmarks $(ARGS)

clean:
	rm -rf build .pytest_cache .ruff_cache .mypy_cache .hypothesis
