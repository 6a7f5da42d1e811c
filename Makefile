.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev
TRAIN := $(VENV)/.train
LOCK := --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-annotate

# `make test` runs three sessions at once: many tests wait for something, few need a whole core. Two have a
# Kafka and a PostgreSQL of their own and take equally long: the folders named here, and whatever else there is.
SESSIONS := test-flow test-parts test-beside
FLOW := tests/pipeline tests/router
test-flow: TESTS = -m "stack and not faults" $(FLOW)
test-parts: TESTS = -m "stack and not faults" $(FLOW:%=--ignore=%)
test-beside: TESTS = -m "not stack and not faults"

.PHONY: help setup demo up down status test $(SESSIONS) lock check schemas bench bench-ledger bench-intake bench-router test-faults clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(DEV) ## make the environment: libraries, Kafka, PostgreSQL; skipped when up to date

$(RUNTIME): requirements.lock pyproject.toml deploy/setup.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh deploy/setup.sh requirements.lock
	@touch $@

$(DEV): requirements-dev.lock $(RUNTIME)
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh deploy/setup.sh requirements-dev.lock
	@touch $@

$(TRAIN): requirements-train.lock $(DEV)
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh deploy/setup.sh requirements-train.lock
	@touch $@

demo: $(RUNTIME) ## play the hotline once: a recorded PBX in, told customers out (ARGS="--calls 500")
	@$(BIN)/hotline demo $(ARGS)

up: $(RUNTIME) ## start the stack and the four stages in the background
	@$(BIN)/hotline up

down: $(RUNTIME) ## stop them; nothing is lost
	@$(BIN)/hotline down

status: $(RUNTIME) ## what runs, where, how far behind
	@$(BIN)/hotline status

test: $(DEV) ## all tests, on a real Kafka and a real PostgreSQL (ARGS="tests/router -k rules")
ifdef ARGS
	@$(BIN)/pytest $(ARGS)
else
	@echo "· $(SESSIONS): each is shown when it is done, until then see .run/*.log"
	@$(MAKE) --no-print-directory -j3 $(SESSIONS)
endif

$(SESSIONS):
	@mkdir -p .run
	@$(BIN)/pytest $(TESTS) >.run/$@.log 2>&1; code=$$?; \
	printf '\n%s\n' "$@"; cat .run/$@.log; exit $$code

lock: ## resolve requirements*.lock again from pyproject.toml (needs uv)
	@uv pip compile pyproject.toml $(LOCK) -q -o requirements.lock
	@uv pip compile pyproject.toml --extra dev $(LOCK) -q -o requirements-dev.lock
	@uv pip compile pyproject.toml --extra dev --extra train $(LOCK) -q -o requirements-train.lock

check: $(DEV) ## style, types, architecture, contract
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/pytest -q tests/architecture tests/contracts

schemas: $(DEV) ## write JSON Schemas and AsyncAPI from schemas/
	@$(BIN)/python -m schemas.generate

bench: $(DEV) ## speed and cost, in pairs against bench/naive (ARGS="--quick")
	@$(BIN)/python -m bench $(ARGS)

bench-ledger: $(DEV) ## how fast the observer reads, and what watching costs the stages
	@$(BIN)/python -m bench.ledger $(ARGS)

bench-intake: $(DEV) ## how telephony comes in; wait estimate and forecast against real calls
	@$(BIN)/python -m bench.intake $(ARGS)
	@$(BIN)/python -m bench.waiting
	@$(BIN)/python -m bench.forecast

bench-router: $(TRAIN) ## the classifier on public sets, decisions per second; needs scikit-learn, installed apart
	@$(BIN)/python -m bench.router $(ARGS)

test-faults: $(DEV) ## the long fault runs
	@$(BIN)/pytest -m faults $(ARGS)

clean: ## forget the environment and everything that ran
	rm -rf $(VENV) .run .pytest_cache .mypy_cache .ruff_cache .hypothesis
