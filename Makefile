# demo and test each work as the first command on a new machine.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test dev check bench campaign wheel golden clean

demo: $(STAMP)
	@$(BIN)/tracepaper demo --bars 2000

test: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -p no:cacheprovider

dev: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; set PYTHON to an interpreter of 3.11 or newer."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt pip setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@mkdir -p .types/tracepaper
	@for room in daemon replay storage strategies; do ln -sfn ../../$$room .types/tracepaper/$$room; done
	@touch $(STAMP)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/mypy tests

bench: $(STAMP)
	$(BIN)/tracepaper bench ingest
	$(BIN)/tracepaper bench live
	$(BIN)/tracepaper bench replay

campaign: $(STAMP)
	$(BIN)/python tests/campaign.py --rounds 100

wheel: $(STAMP)
	$(BIN)/python -m build --wheel

golden: $(STAMP)
	$(BIN)/python -m pytest -q tests/test_line.py --rewrite-golden
	git --no-pager diff --stat -- tests/data

clean:
	rm -rf $(VENV) .types build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
