# make demo, make test: both set up .venv first, once. See README.md.
#   PYTHON        an interpreter of Python 3.11 or newer
#   TORCH_INDEX   a package index to take PyTorch from, such as the one of its builds for CPUs
#   PIP_ARGS      further arguments of pip install

PYTHON ?= $(firstword $(foreach v,3.11 3.12 3.13 3,$(shell command -v python$(v) 2>/dev/null)))
TORCH_INDEX ?=
PIP_ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -c constraints.txt

.PHONY: install demo test readme docs clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 2; }
	"$(PYTHON)" -m venv .venv
	$(if $(TORCH_INDEX),$(PIP) --index-url $(TORCH_INDEX) torch)
	$(PIP) -e ".[dev]"
	@touch $@

demo: install
	$(BIN)/subjunctive demo --out demo --overwrite

# One thread a worker: more threads than cores cost far more than they give.
test: export OMP_NUM_THREADS = 1
test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --durations=20

# Every page's code is run; a warning is an error.
docs: install
	$(PIP) -e ".[docs]"
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build

readme: install
	$(BIN)/subjunctive methods --into README.md

clean:
	rm -rf .venv demo build dist .mypy_cache .ruff_cache src/*.egg-info docs/_build docs/_run docs/methods
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
