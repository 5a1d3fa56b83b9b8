# Every target sets up what it needs; `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3.11
BIN := .venv/bin
WHEEL_DIR ?= $(HOME)/.tidegate/wheel
# grafana-client brings urllib3-future, whose wheel would overwrite urllib3; built from source it doesn't.
# PyTorch's CPU wheel: from a folder of wheels if pip is told of one, else from PyTorch's CPU index.
TORCH_SOURCE := $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS),--torch-backend cpu)

# Hundreds of processes import the same modules, so compiled ones are kept whatever the shell says.
export PYTHONDONTWRITEBYTECODE :=

# Runs the tests with a mark; those that fail run once more, one by one, and both results are
# printed. A test that needs it twice is a defect: see CONTRIBUTING.md.
run-tests = $(BIN)/pytest -m "$(1)" $(2) || { \
	  printf '\n%s\n' "===== SECOND RUN of what failed above, one by one ====="; \
	  $(BIN)/pytest -m "$(1)" --last-failed --last-failed-no-failures none || exit; \
	  printf '\n%s\n' "===== PASSED AT THE SECOND RUN ONLY: each test of the second run is a defect ====="; }
# Tests that start clusters mostly wait: two run beside each other (tests/conftest.py says which). The
# lab, which starts five machines at once, runs alone.
CLUSTERS := (ray or vllm) and not lab and not lab_long
LAB := lab and not lab_long

.PHONY: help setup serve demo lab lab-long test unit check lock wheel clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.ready ## create .venv with the pinned dependencies (done by every other target)

.venv/.ready: requirements/cpu.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Tidegate needs Python 3.11; '$(PYTHON)' isn't on PATH. Type: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Setting up .venv (about a minute, once)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install -qq --disable-pip-version-check uv==0.13.9
	@URLLIB3_NO_OVERRIDE=1 $(BIN)/uv pip install --compile-bytecode --no-deps -r requirements/cpu.lock $(TORCH_SOURCE) \
	  --no-binary urllib3-future
	@$(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

serve: setup ## run the cluster on this machine until Ctrl-C: gateway, vLLM, autoscaler
	@$(BIN)/tidegate serve $(ARGS)

demo: setup ## a guided burst into the cloud site and home again; ARGS="--engine emulated" on small machines
	@$(BIN)/tidegate demo $(ARGS)

lab: setup ## a shell on the operator's machine of a pretended data centre and cloud (root on Linux)
	@$(BIN)/python -m tests.lab $(ARGS)

lab-long: setup ## the lab's tests of many minutes: long WAN cuts, repeats (root on Linux)
	@$(BIN)/pytest -m lab_long --durations=15 $(ARGS)

test: setup ## all tests, real Ray and one real vLLM engine included; ARGS="-k words" for some
ifeq ($(ARGS),)
	@$(call run-tests,not ray and not vllm and not lab,-n auto --dist worksteal -q)
	@$(call run-tests,$(CLUSTERS),-n 2 --dist loadscope -v --durations=25)
	@$(call run-tests,$(LAB),-v --durations=10)
else
	@$(BIN)/pytest $(ARGS)
endif

unit: setup ## the quick tests: no Ray, no engine, no sshd, PostgreSQL or moto
	@$(BIN)/pytest -m "not ray and not vllm and not lab and not daemon" -n auto --dist worksteal -q $(ARGS)

check: setup ## lint, format, types, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

lock: setup ## resolve requirements/cpu.in anew into requirements/cpu.lock
	@$(BIN)/uv pip compile requirements/cpu.in --override requirements/cpu.overrides $(TORCH_SOURCE) \
	  --python-version 3.11 --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
	  --upgrade --output-file requirements/cpu.lock >/dev/null

wheel: setup ## build the wheel that `ray up cluster/hybrid.yaml` installs on every node
	@rm -rf $(WHEEL_DIR) && mkdir -p $(WHEEL_DIR)
	@$(BIN)/pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation -w $(WHEEL_DIR) .
	@ls $(WHEEL_DIR)

clean: ## remove .venv and caches (weights stay in the user's cache)
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
