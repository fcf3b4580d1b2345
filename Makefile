# `make run` shows the daemon at work, `make test` proves it; both install what they need.

CARGO ?= cargo
# Arguments of `claviger dev`, such as ARGS="--once --grpc-port 0", of `claviger bench`, or the tries of `make timing`.
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help run test lint bench soak timing clean

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' $(MAKEFILE_LIST)

run: ## Build, then run a complete local environment and the main job on it
	@scripts/install-run-deps
	$(CARGO) run --locked -- dev $(ARGS)

test: ## Check formatting, lint, and run every test on a real token and real databases
	@scripts/install-test-deps
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) test --locked --workspace --no-fail-fast

lint: ## Formatting and clippy only
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

bench: ## Measure calls per second, optimised, client included
	@scripts/install-run-deps
	@scripts/bench $(ARGS)

soak: ## Three replicas under load while everything fails in turn, for ten minutes
	@scripts/install-test-deps
	CLAVIGER_SOAK_SECONDS=600 $(CARGO) test --locked --test it -- --nocapture three_replicas

timing: ## Look for what the time of a refusal tells about an API key; some minutes
	@scripts/install-run-deps
	@scripts/timing $(ARGS)

clean: ## Remove what was built, and the directory of `claviger dev`
	$(CARGO) clean
	rm -rf .dev
