# make sweep   create the environment, run the first example, say where the results are
# make test    all tests
# make quick   those that need no Ray, no server, no browser and no other process that imports torch: in minutes
# make mutants faults put into the modules that decide, one at a time: which of them the quick tests notice
# make check   what CI checks beside the tests
# make faults  real sweeps under real faults, about twenty minutes; LONG=1 for twice the kills
# make browser-test  what a person sees, in a real browser
# make cluster-test  real sweeps on real Ray clusters on this machine, of hosts of their own where root runs it

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
export PATH := $(abspath $(BIN)):$(PATH)
unexport PYTHONDONTWRITEBYTECODE  # two processes of tests and dozens that they start read the same modules

# Tests write thousands of small files and wait for the disk to have them; memory has them at once. Where 8 GB of it are free.
IN_MEMORY := $(shell df -k --output=avail /dev/shm 2>/dev/null | awk 'NR == 2 && $$1 > 8000000 { print "/dev/shm" }')
test quick faults browser-test cluster-test: export TMPDIR := $(or $(TMPDIR),$(IN_MEMORY),/tmp)

.PHONY: sweep test quick mutants check faults browser-test cluster-test install ops format clean

sweep: ops
	orchestrate sweep sweeps/toyfaces.yaml

test: ops
	python -m pytest -q -n 2 --no-loadscope-reorder

quick: install
	python -m pytest -q -n 2 --no-loadscope-reorder -m "not slow"

mutants: install
	python -m tests.mutants $(if $(COUNT),--count $(COUNT))

check: install
	ruff check .
	ruff format --check .
	mypy
	lint-imports

faults: ops
	python -m tests.faults $(if $(LONG),--long)

browser-test: ops
	python -m pytest tests/browser

cluster-test: ops
	python -m tests.cluster

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# DeepSpeed compiles its operators on first use; once, here, so that no trial waits for it.
ops: $(VENV)/ops

$(VENV)/ops: $(VENV)/installed
	orchestrate doctor --build
	touch $@

format: install
	ruff check --fix .
	ruff format .

clean:
	rm -rf $(VENV) *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
