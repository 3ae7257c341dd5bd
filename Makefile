# Each target does all of its own set-up: a fresh clone needs Python 3.11+, make and git, no more.
# PYTHON=/path/to/python3 chooses the interpreter that the environment is made with.

VENV := .venv
PY := $(VENV)/bin/python
# What is installed is noted in two stamps, so that `make demo` need not wait for the test tools.
RUN := $(VENV)/.installed-run
DEV := $(VENV)/.installed-dev

# Arguments that are passed on, e.g.  make demo ARGS="--tokens 200"  or  make test ARGS="-k vhost".
ARGS ?=
# How many processes share the tests that do not look at the clock. These wait for a third of their
# time, so one more than there are cores keeps the cores busy.
WORKERS ?= 3
# How many share those that look at the clock and hardly do anything but wait.
WAITERS ?= 4
# Seconds that each fuzz target may take in `make fuzz`.
FUZZ_SECONDS ?= 120
# How long `make soak` goes on.
SOAK_SECONDS ?= 3600

# Where this is set, each of the thousand programs that the tests start compiles all of its modules
# again, and each run of pytest all tests: two minutes in all. `make clean` removes what is kept.
unexport PYTHONDONTWRITEBYTECODE

# A stamp of an environment whose interpreter is gone says nothing.
ifneq ($(shell $(PY) -c 'print(1)' 2>/dev/null),1)
STALE := stale
endif

.DEFAULT_GOAL := help
.PHONY: help demo test lint format coverage bench fuzz soak test-llm test-real clean distclean stale

help:
	@echo "make demo      start a sample LLM API, a server and a client, and stream through them"
	@echo "make test      format, lint, types, and all tests"
	@echo "make lint      format, lint and types only"
	@echo "make format    rewrite the files in the project's format"
	@echo "make coverage  unit tests with branch coverage"
	@echo "make bench     measure against the official frp and nginx, print a table"
	@echo "make fuzz      every decoder against generated input, FUZZ_SECONDS=$(FUZZ_SECONDS) each"
	@echo "make soak      an hour behind squid: streams, idle times, restarts, moves, SOAK_SECONDS=$(SOAK_SECONDS) (Debian, root)"
	@echo "make test-llm  a real model behind the tunnel (about 10 minutes of set-up, once)"
	@echo "make test-real ssh, rsync, curl, nginx, iperf3, PostgreSQL, dig through the tunnel (Debian, root)"
	@echo "make clean     remove the environment and caches (distclean: the model's too)"

$(RUN): pyproject.toml scripts/make-venv.sh $(STALE)
	@scripts/make-venv.sh $(VENV) --editable .
	@touch $@

$(DEV): pyproject.toml scripts/make-venv.sh $(STALE)
	@scripts/make-venv.sh $(VENV) --editable '.[dev]'
	@touch $@ $(RUN)

demo: $(RUN)
	@$(PY) -m pyfrp demo $(ARGS)

lint: $(DEV)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	@if command -v shellcheck >/dev/null; then \
	  echo "shellcheck scripts"; shellcheck -x scripts/*.sh .ci/run; \
	fi

format: $(DEV)
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

test: lint
	$(PY) scripts/fetch_official.py
ifeq ($(strip $(ARGS)),)
	@# All cores are filled, but what looks at the clock has the machine for itself, and what
	@# waits by the clock shares it with its like alone.
	$(PY) -m pytest -n $(WORKERS) --dist worksteal tests/unit
	$(PY) -m pytest -n $(WORKERS) --dist loadfile -m "not clock and not waits" \
	  tests --ignore=tests/unit
	$(PY) -m pytest -n $(WAITERS) --dist load --maxschedchunk 1 -m waits tests --ignore=tests/unit
	$(PY) -m pytest -m clock tests --ignore=tests/unit
else
	$(PY) -m pytest $(ARGS)
endif

coverage: $(DEV)
	$(PY) -m coverage erase
	$(PY) -m coverage run -m pytest tests/unit $(ARGS)
	$(PY) -m coverage combine --quiet
	$(PY) -m coverage report

bench: $(DEV)
	@$(PY) scripts/fetch_official.py
	@$(PY) -m benchmarks $(ARGS)

fuzz: $(DEV)
	PYFRP_FUZZ_SECONDS=$(FUZZ_SECONDS) $(PY) -m pytest -m fuzz --timeout 0 $(ARGS)

test-llm: $(RUN)
	@$(PY) scripts/test_llm.py $(ARGS)

test-real: $(DEV)
	@scripts/install-real.sh
	$(PY) -m pytest --real tests/real $(ARGS)

soak: $(DEV)
	@scripts/install-real.sh
	$(PY) -m tests.soak --seconds $(SOAK_SECONDS) $(ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.* \
	  build dist .cache/official
	find pyfrp tests benchmarks scripts -name __pycache__ -type d -prune -exec rm -rf {} + \
	  2>/dev/null || true

distclean: clean
	rm -rf .cache
