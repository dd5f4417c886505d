# Trainyard. `make help` lists the targets.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
export PYTHONPATH := operator:trainer-image:tests:examples
export PYTHONUNBUFFERED := 1
export PYTHONDONTWRITEBYTECODE := 1

# Every recipe that needs Python begins with this: the environment is made on first use and kept in the user's cache.
venv = venv=$$(tests/environment.sh); export PATH="$$venv/bin:$$PATH";

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## a real cluster, the operator, a LLaMA2 trained over two nodes, a worker killed on the way
	@$(venv) exec python -m demo run

.PHONY: demo-clean
demo-clean: ## remove all that `make demo` left
	@$(venv) exec python -m demo clean

.PHONY: test
test: ## everything that tests: lint, unit, train, parity, contract, chart, end to end on a real cluster
	@$(venv) exec python -m harness.run lint unit train parity contract chart e2e

.PHONY: lint
lint: ## ruff, mypy, import contracts, generated files fresh
	@$(venv) exec python -m harness.run lint

.PHONY: unit
unit: ## unit tests: pure code, under a minute
	@$(venv) exec python -m harness.run unit

.PHONY: train
train: ## the trainer in several processes on this machine
	@$(venv) exec python -m harness.run train

.PHONY: golden
golden: ## train the golden loss curves whole and compare them
	@$(venv) exec python -m golden.curves

.PHONY: parity
parity: ## every parallel layout trains like one process
	@$(venv) exec python -m harness.run parity

.PHONY: contract
contract: ## CRDs, rights and policies against a real API server
	@$(venv) exec python -m harness.run contract

.PHONY: chart
chart: ## helm lint, schema validation, checkov
	@$(venv) exec python -m harness.run chart

.PHONY: e2e
e2e: ## end to end on a real cluster
	@$(venv) exec python -m harness.run e2e

.PHONY: device-chaos
device-chaos: ## nightly: a thousand random faults, heals and kills against a job, at most 15 minutes
	@$(venv) TRAINYARD_CHAOS_EVENTS=1000 TRAINYARD_CHAOS_SECONDS=600 exec python -m pytest -s -q -p no:cacheprovider tests/e2e/test_device_chaos.py

.PHONY: chaos
chaos: ## every fault of docs/recovery.md, five times, against a real job: its table; ARGS="--cases 1,3 --times 2" for less
	@$(venv) exec python -m chaos $(ARGS)

.PHONY: bench
bench: ## measure and print the figures of docs/figures.md
	@$(venv) exec python -m bench

.PHONY: bench-scale
bench-scale: ## gangs of 100 to 5,000 pods on simulated nodes; SIZES=100,1000 for others
	@$(venv) exec python -m scale $(if $(SIZES),--sizes $(SIZES))

.PHONY: bench-train
bench-train: ## the trainer against its ceiling, Hugging Face Trainer and Accelerate: docs/speed.md; PARTS="one compiled two bubble copies"
	@$(venv) exec python -m speed $(PARTS)

.PHONY: bench-planner
bench-planner: ## the planner against real runs: memory, and whether its first choice is the fastest; docs/planner.md
	@$(venv) python -m planner.memory; exec python -m planner.seconds

.PHONY: generate
generate: ## write the CRDs, the chart's copy and the API reference from the types, and the agent's gRPC stubs
	@$(venv) python -m trainyard.api.generate; exec python -m harness.stubs

.PHONY: images
images: ## build the operator's and the trainer's images
	@$(venv) exec python -m cluster image all

.PHONY: up
up: ## a cluster to play with, named dev, with Trainyard installed
	@$(venv) exec python -m demo up

.PHONY: down
down: ## remove the cluster that `make up` made
	@$(venv) exec python -m cluster down --name dev

.PHONY: clean
clean: ## remove every cluster of ours on this machine; caches stay
	@$(venv) exec python -m cluster down --all
