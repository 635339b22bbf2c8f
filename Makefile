# Every command of the project; `make` alone lists them. Each makes .venv first where it needs to
# (scripts/bootstrap.sh), and a second call does only what has changed.
.DEFAULT_GOAL := help
SHELL := bash

BIN := $(CURDIR)/.venv/bin
WITH_VENV := PATH="$(BIN):$$PATH"
MODULE_BUILD = $(firstword $(wildcard build/cp*))
CXX_FILES = $(shell git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu')
TIDY_FILES = $(filter-out csrc/tests/%,$(filter %.cpp,$(CXX_FILES)))

DEMO_SCHEMES ?= nf4,fp4-dq,int4-g128,gptq-int4-g128,int8
DEMO_OUTPUT ?= runs/demo
# A smoke test within minutes on two cores; the audit's own defaults take more items and text.
DEMO_SIZE ?= --limit 600 --text_tokens 4096

.PHONY: help demo test test-all cpptest pytest notebooks lint types format sanitize wheel \
	bootstrap clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "%-12s %s\n", $$1, $$2 }'

demo: ## audit a real language model: five schemes against the original, report in runs/demo
	@scripts/bootstrap.sh demo
	@model="$$($(BIN)/python scripts/demo_model.py)" && \
	$(BIN)/calibit audit "$$model" --schemes $(DEMO_SCHEMES) $(DEMO_SIZE) -o $(DEMO_OUTPUT)

test: bootstrap cpptest pytest notebooks ## C++ tests, Python tests without the slow ones, notebooks

test-all: bootstrap cpptest ## the same with the slow Python tests
	$(BIN)/python -m pytest -q
	@$(MAKE) --no-print-directory notebooks

bootstrap:
	@scripts/bootstrap.sh test

# The C++ tests need neither torch nor Python: a build of their own.
define run_cpp_tests
	@$(WITH_VENV) cmake -S . -B build/$(1) -DCALIBIT_PYTHON=OFF -DCALIBIT_TESTS=ON \
		-DPython_EXECUTABLE="$(BIN)/python" $(2) >build/$(1).log || { cat build/$(1).log; exit 1; }
	@$(WITH_VENV) cmake --build build/$(1) --parallel $${MAX_JOBS:-2} >>build/$(1).log || \
		{ tail -n 40 build/$(1).log; exit 1; }
	@$(WITH_VENV) UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
		ctest --test-dir build/$(1) --output-on-failure --no-tests=error
endef

cpptest: bootstrap ## C++ tests of the core and of every kernel table
	@mkdir -p build
	$(call run_cpp_tests,cpptest)

sanitize: bootstrap ## the C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@mkdir -p build
	$(call run_cpp_tests,sanitize,-DCALIBIT_SANITIZE=ON)

pytest: bootstrap ## Python tests without the slow ones
	$(BIN)/python -m pytest -q -m "not slow"

notebooks: bootstrap ## run every notebook from top to bottom, in small sizes
	@set -e; for file in notebooks/*.ipynb; do \
		echo "running $$file"; CALIBIT_FAST=1 $(WITH_VENV) jupyter-execute --timeout=600 "$$file"; \
	done

lint: bootstrap ## ruff, clang-format, clang-tidy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@for script in scripts/*.sh .ci/run; do bash -n $$script || exit 1; done
	@echo clang-format; $(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	@echo clang-tidy; $(BIN)/clang-tidy --quiet --extra-arg=-Wno-unknown-warning-option -p $(MODULE_BUILD) $(TIDY_FILES) 2>/dev/null

types: bootstrap ## mypy
	$(BIN)/mypy

format: bootstrap ## rewrite the sources in the project's layout
	$(BIN)/ruff check --fix . || true
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

wheel: bootstrap ## build the wheel and try it in an environment of its own
	$(BIN)/python scripts/check_wheel.py

clean: ## remove what was built; keep .venv and runs
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f .venv/calibit/extension
