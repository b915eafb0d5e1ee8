# Two commands for a new user: `make demo` and `make test`. Both do all the set-up; a second call installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PYTHONUNBUFFERED := 1

.PHONY: setup demo test test-with-ray test-without-ray test-slow chaos bench lint types build docs schemas lock clean

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.9,<1"
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode --require-hashes -r requirements.lock
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m compileall -q ka_ray  # else each of Ray's processes compiles it where Python may not store bytecode
	touch $(READY)

demo: $(READY)
	$(BIN)/ka-ray demo --output runs/demo

test: lint
	$(MAKE) --jobs=3 --output-sync=line test-with-ray test-without-ray types  # the first one waits for processes

# They share the cores: with a thread per core in each process, threads would wait for each other.
test-with-ray test-without-ray: export OMP_NUM_THREADS := 1

test-with-ray: $(READY)
	$(BIN)/python -m pytest -m "ray and not slow and not chaos"

test-without-ray: $(READY)
	$(BIN)/python -m pytest -m "not ray and not slow and not chaos"

test-slow: $(READY)
	$(BIN)/python -m pytest -m "slow and not chaos"

chaos: $(READY)  ## Kill processes and nodes in every stage; more than an hour.
	$(BIN)/python -m pytest -m chaos tests/chaos

bench: $(READY)  ## Measure speed against bare twins, on an idle machine; writes benchmarks/RESULTS.md.
	$(BIN)/python benchmarks/bench.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

build: $(READY)  ## Build the sdist and the wheel in dist/.
	rm -rf dist
	$(BIN)/hatchling build

docs: $(READY)  ## Build the site of the documentation in site/.
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/mkdocs build --quiet

schemas: $(READY)  ## Write the JSON schemas of configs.
	$(BIN)/python -m ka_ray.config.json_schema jobs/configs

lock:  ## Compile the hash-pinned lock file; no addresses in it.
	$(BIN)/uv pip compile pyproject.toml --all-extras --python-version 3.11 --universal --generate-hashes \
		--no-header --no-emit-index-url --no-emit-find-links --no-annotate --quiet -o requirements.lock

clean:
	rm -rf $(VENV) dist site .mypy_cache .ruff_cache .pytest_cache
