# Main targets: `make demo` and `make test`. Each creates .venv and installs what it needs, once.

PYTHON ?= python3
VENV := .venv
TOOLS := .venv-tools
DOCS := .venv-docs
BIN := $(VENV)/bin

.PHONY: demo test tests lint prose typecheck format docs metrics faults soak rehearsal gpu sbom audit clean

demo: $(VENV)/.installed
	$(BIN)/mibf demo

# All checks and tests except fault injection, the end-to-end operations test and the checks on a GPU.
test: lint typecheck
	$(MAKE) --no-print-directory tests

# The tests of `make test`, without the prose checks, which `lint` runs.
# Three workers, for two cores: tests that start commands wait for them.
tests: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 3 --dist worksteal -m 'not faults and not rehearsal and not gpu and not prose' -q

# Check the rules of ruff, the formatting, and the wording of texts.
lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) --no-print-directory prose

# Check the wording of texts: the tests marked `prose`.
prose: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m prose -q tests/architecture

typecheck: $(VENV)/.installed-test
	$(BIN)/mypy

# Fix what ruff can fix, and format the code.
format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Build the documentation into site/; warnings, dead links and undocumented public names are errors. The variable is
# Material's switch for an announcement that it prints on every build.
docs: $(DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

# Print the sizes of modules, functions and folders, and tests per source line.
metrics:
	$(PYTHON) .ci/metrics.py

# Fault injection: run complete commands while their workers, nodes and drivers are killed.
faults: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m faults -q tests

# Long random sequences of work and faults on one workspace; SEED=1 repeats those of an earlier run.
soak: SEED ?= $(shell date +%s)
soak: $(VENV)/.installed-test
	MIBF_SOAK=1 $(BIN)/python -m pytest -m faults -q -s --hypothesis-seed=$(SEED) tests/fault_injection/test_reruns.py

# End-to-end operations test: a real S3 server, a Ray cluster whose nodes are killed, the scheduled rerun.
rehearsal: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m rehearsal -q tests/fault_injection/test_operations.py

# Checks on a GPU: correctness against the CPU, throughput, failures. Figures are printed and written to gpu.json.
gpu: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m gpu -q tests/gpu

# Write a bill of materials (CycloneDX) of the installed packages: sbom.json.
sbom: $(VENV)/.installed $(TOOLS)/.installed
	$(TOOLS)/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --short-PURLs --output-reproducible -o sbom.json

# Check the installed packages for known vulnerabilities; needs a network.
audit:
	PYTHON=$(PYTHON) .ci/audit

# Install torch first, by exact version: an index with a CPU build then provides that one, any other index the default
# build. The constraints keep it in place afterwards.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mibf needs Python 3.11 or newer; run make PYTHON=python3.x")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

# Triton comes with CUDA builds of torch; with others, the tests interpret the GPU kernels.
# Only the files of eopf are needed, including the STAC extension schemas; its dependencies conflict with those of mibf.
$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	$(BIN)/python -c 'import triton' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps 'triton==3.6.0'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/stac-schemas 'eopf==2.8.1'
	touch $@

# The tools have a separate environment, so that they do not appear in the bill of materials.
$(TOOLS)/.installed: Makefile
	test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check 'cyclonedx-bom==7.5.0' 'pip-audit==2.10.1'
	touch $@

# The documentation tools read the sources without importing them, except the command line, for the list of commands: this
# environment has only what that imports.
$(DOCS)/.installed: pyproject.toml constraints.txt
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' > $(DOCS)/requirements.txt
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --requirement $(DOCS)/requirements.txt
	touch $@

clean:
	rm -rf $(VENV) $(TOOLS) $(DOCS) site build *.egg-info
