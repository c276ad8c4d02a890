# Two commands: `make demo` and `make test`. Each makes .venv and installs what it needs, once.

PYTHON ?= python3
VENV := .venv
TOOLS := .venv-tools
BIN := $(VENV)/bin

.PHONY: demo test faults rehearsal sbom audit clean

demo: $(VENV)/.installed
	$(BIN)/mibf demo

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

# Whole commands whose workers, nodes and drivers die under them.
faults: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m faults -q

# A night and a morning of operations with real parts: an S3 server, a Ray cluster whose nodes die, the scheduled rerun.
rehearsal: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m rehearsal -q tests/test_rehearsal.py

# What is installed, as a bill of materials (CycloneDX): sbom.json.
sbom: $(VENV)/.installed $(TOOLS)/.installed
	$(TOOLS)/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --short-PURLs --output-reproducible -o sbom.json

# The same against the known vulnerabilities; wants a network.
audit:
	PYTHON=$(PYTHON) .ci/audit

# torch first and by exact version: an index that has a CPU build of it then gives that one, any other
# gives the usual build. The constraints keep it in place afterwards.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mibf needs Python 3.11 or newer; run make PYTHON=python3.x")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

# Of eopf just its files are wanted, among them the schemas of STAC's extensions: what it needs does not go with ours.
$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/stac-schemas 'eopf==2.8.1'
	touch $@

# The tools have a place of their own, so that they are not listed.
$(TOOLS)/.installed: Makefile
	test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check 'cyclonedx-bom==7.5.0' 'pip-audit==2.10.1'
	touch $@

clean:
	rm -rf $(VENV) $(TOOLS) build *.egg-info
