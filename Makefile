# demo and test each work as the first command on a new machine.
PYTHON ?= $(notdir $(firstword $(wildcard $(foreach v,python3.11 python3.12 python3.13 python3,$(addsuffix /$(v),$(subst :, ,$(PATH)))))))
# The build of PyTorch: auto (for processors, unless a GPU is here), cpu, or default (the package index's).
TORCH ?= auto
VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
STAMP := $(VENV)/.installed
LOOPS := strategies/attention
CONSTRAINTS := constraints.txt
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c $(CONSTRAINTS)

.PHONY: demo test test-all busy busy-round costs dev check docs bench campaign mutants clients peers wheel golden ledger asked readme clean

demo: $(RUNTIME)
	@$(BIN)/tracepaper demo

# The tests run with an empty home and cache, so that what a first run makes or prints is tested. Each of two workers
# computes on one thread: on two they spin against each other for the same two cores.
# Without bytecode every program that a test starts would compile the package again.
PYTEST := home=$$(mktemp -d) && trap 'rm -rf "$$home"' EXIT && env -u XDG_DATA_HOME -u XDG_STATE_HOME -u MPLCONFIGDIR \
	-u PYTHONDONTWRITEBYTECODE \
	HOME="$$home" XDG_CACHE_HOME="$$home/.cache" XDG_CONFIG_HOME="$$home/.config" OMP_NUM_THREADS=1 \
	$(BIN)/python -m pytest -q -p no:cacheprovider

# tests/data/costs.tsv says what each test costs. test-all adds what takes over a quarter of a CPU second; make campaign
# runs what takes over half of one. A test without a row fails where it takes over eight times that quarter: one that
# is quick enough takes twice as long on a slow machine, and three times as long on a busy one.
UNKNOWN := --unknown-costs 2

test: $(STAMP)
	@$(PYTEST) $(UNKNOWN) -n 2 --dist worksteal -m "not slow and not long"

test-all: $(STAMP)
	@$(PYTEST) $(UNKNOWN) -n 2 --dist worksteal -m "not long"

# The tests that open a socket or start a process, beside four busy loops and each other; any failure is a fault.
# Those of a file share a worker: what a file needs is made once.
ROUNDS ?= 1
busy: $(STAMP)
	@for loop in 1 2 3 4; do (while :; do :; done) & loops="$$loops $$!"; done; trap 'kill $$loops' EXIT; \
	for round in $$(seq $(ROUNDS)); do $(MAKE) --no-print-directory busy-round || exit 1; done

busy-round:
	@$(PYTEST) -n 6 --dist loadfile -m "real_time and not long" \
		$$(awk -F '\t|::' '$$NF == "real_time" {print $$2}' tests/data/costs.tsv | sort -u)

# An hour: every test once, and the table of what each costs. ONLY names files or folders whose rows are written anew.
costs: $(STAMP)
	@table=$$(mktemp) && { $(PYTEST) -n 2 --dist loadfile --costs $$table $(ONLY) || true; } && \
	$(BIN)/python tests/support/costs.py $$table $(ONLY); rm -f $$table

dev: $(STAMP)

$(RUNTIME): pyproject.toml $(CONSTRAINTS) setup.py deploy/torch.sh $(LOOPS)/native.c
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; set PYTHON to an interpreter of 3.11 or newer."; exit 1; }
	@echo "Installing tracepaper into $(VENV): a minute or two, mostly PyTorch."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip setuptools
	@deploy/torch.sh $(BIN)/python $(TORCH)
	@rm -f $(LOOPS)/native.*.so
	@$(PIP) -e .
	@ls $(LOOPS)/native.*.so >/dev/null 2>&1 || echo "No C compiler here built the loops of attention: torch computes the same, slower."
	@touch $(RUNTIME)

$(STAMP): $(RUNTIME)
	@echo "Installing what the tests and checks need."
	@$(PIP) -e '.[dev]'
	@mkdir -p .types/tracepaper
	@for part in __init__.py __main__.py attention.py models.py py.typed daemon replay storage strategies; do ln -sfn ../../$$part .types/tracepaper/$$part; done
	@touch $(STAMP)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/mypy tests
	$(BIN)/vulture

# The pages of docs/ and the reference of every module, into build/docs/site.
docs: $(STAMP)
	PYTHONPATH=tests:tests/support $(BIN)/python tests/generators/documentation.py

# Measures every figure of deploy/FIGURES.md; ONLY is a text that the commands to run hold.
bench: $(STAMP)
	PYTHONPATH=tests:tests/support $(BIN)/python tests/generators/figures.py "$(ONLY)"

# Hours; what passed on this commit is not run again. ONLY names a part, or the beginning of its name.
campaign: $(STAMP)
	@[ -n "$(ONLY)" ] || command -v promtool >/dev/null || { echo "promtool is not installed; it comes with Prometheus (Debian: apt install prometheus)."; exit 1; }
	@$(BIN)/python tests/campaigns/campaign_all.py --only "$(ONLY)"

# Mutations of which a test must find each; ONLY names a group, or a part of a mutation.
mutants: $(STAMP)
	@$(BIN)/python tests/campaigns/campaign_mutants.py --only "$(ONLY)"

# Each client gets an environment of its own under $(VENV)/clients; this needs the network once.
clients: $(STAMP)
	$(BIN)/python -m pytest -q -m clients -p no:cacheprovider tests/clients

# Other backtesters on the same candles and orders, each in an environment of its own.
peers: $(STAMP)
	$(BIN)/python -m pytest -q -m peers -p no:cacheprovider tests/peers
	PYTHONPATH=tests:tests/support $(BIN)/python tests/peers/speed.py

# The source distribution, and the wheel made of it, at the pinned setuptools: two builds are equal byte by byte.
# Attention is built once more as tracepaper-attention, for those who need nothing else.
wheel: $(STAMP)
	PIP_CONSTRAINT=$(abspath $(CONSTRAINTS)) $(BIN)/python -m build
	deploy/attention/sources.sh build/attention
	PIP_CONSTRAINT=$(abspath $(CONSTRAINTS)) SOURCE_COMMIT=$$(git rev-parse HEAD) $(BIN)/python -m build --outdir dist build/attention

# What follows from the code: golden steps, the documented configuration, the page of the views.
golden: $(STAMP)
	$(BIN)/python -m pytest -q -n 0 tests/product/test_line.py tests/daemon/engine/test_histories.py --rewrite-golden
	PYTHONPATH=tests:tests/support $(BIN)/python tests/generators/generated.py
	git --no-pager diff --stat -- tests/data deploy docs

# What the code costs its readers, by room and in all.
ledger: $(STAMP)
	@PYTHONPATH=tests:tests/support $(BIN)/python tests/generators/ledger.py

# What was asked for, the example or the test that runs it, and each number within its limit.
asked: $(STAMP)
	@PYTHONPATH=tests:tests/support:tests/generators $(BIN)/python tests/product/test_asked.py

readme: $(STAMP)
	PYTHONPATH=tests:tests/support $(BIN)/python tests/generators/readme.py $(PAGES)
	PYTHONPATH=tests:tests/support $(BIN)/python tests/generators/pictures.py
	PYTHONPATH=tests:tests/support $(BIN)/python tests/generators/docs_notebook.py

clean:
	rm -rf $(VENV) .types build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
