# make run                       ask the default model a question (installs and fetches what is missing)
# make run PROMPT="..."          ask it something else; MODEL=... takes another model
# make test                      lint, types and the whole test suite
# make bench                     speed beside llama.cpp on the same file
# make clean                     remove the virtual environment

PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null && echo "$$p" && break; done)
PROMPT ?= Why is the sky blue?
MODEL  ?= smollm2-135m
# what the default model's authors advise; it is small, and invents more above
TEMPERATURE ?= 0.2
export EDGELM_PROMPT := $(value PROMPT)
export EDGELM_MODEL := $(value MODEL)

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: run test lint types bench clean

run: .venv/installed
	@$(BIN)/edgelm run "$$EDGELM_MODEL" "$$EDGELM_PROMPT" --temperature $(TEMPERATURE)

test: .venv/installed-for-tests lint types
	$(BIN)/pytest -n 2 --dist loadfile --durations=5

lint: .venv/installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/installed-for-tests
	$(BIN)/mypy

bench: .venv/installed-for-tests
	@$(BIN)/edgelm pull "$$EDGELM_MODEL" > /dev/null
	$(BIN)/edgebench run "$$EDGELM_MODEL" --peers llama.cpp

clean:
	rm -rf .venv

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "edgelm needs Python 3.11 or newer; name it with make PYTHON=/path/to/python3" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv

# The stamps make a second run start at once: pip is called only when pyproject.toml has changed.
.venv/installed: pyproject.toml | .venv/bin/python
	$(PIP) install --quiet -e .
	@touch $@

.venv/installed-for-tests: pyproject.toml | .venv/bin/python
	$(PIP) install --quiet -e ".[dev,all]"
	@touch .venv/installed $@
