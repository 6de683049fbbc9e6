# Heddle. `make help` lists the targets; README.md says which two to begin with.
#
# One cargo profile (dev, with optimised dependencies) and one set of features serve the lab, the
# demo and the tests, so that a clean machine compiles every dependency once. Only `make bench`
# builds for release, and the sidecar by itself: with the features it ships with, not the union of
# what the workspace asks for.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
LAB := $(TARGET)/lab
PROGRAMS := heddle-lab heddle-demo heddle-app heddle-proxy heddle-init heddle-control-plane
IMAGES := proxy.tar init.tar control-plane.tar app.tar echo.tar
CLUSTER := $(TARGET)/debug/heddle-cluster --name $(or $(HEDDLE_CLUSTER),default)
# Tools that scripts/prepare keeps outside the tree.
export PATH := $(shell scripts/prepare path):$(PATH)

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: lab ## The whole mesh on this machine, with live traffic (root, Linux)
	$(LAB)/heddle-demo

.PHONY: test
test: lab image ## Every test that CI runs: units, namespaces, a short real cluster (root, Linux)
	@scripts/prepare test
	@scripts/test --workspace --locked

.PHONY: check
check: lint ## The inner loop: format, lints, unit tests, house rules (no root)
	@scripts/test --workspace --locked --exclude heddle-tests
	@scripts/test --package heddle-tests --locked --lib --test tidy --test docs --test 'direct_*'

.PHONY: lint
lint: fmt-check ## Format and clippy, warnings refused
	@scripts/prepare build
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	@# Left out above as they are left out of `cargo test`: they need a cluster.
	$(CARGO) clippy --workspace --test 'e2e_*' --locked -- -D warnings

.PHONY: fmt
fmt: ## Format the code
	$(CARGO) fmt --all

.PHONY: fmt-check
fmt-check:
	@scripts/prepare build
	$(CARGO) fmt --all --check

.PHONY: lab
lab: ## Build the mesh and the lab; leaves target/lab/heddle-lab
	@scripts/prepare lab
	$(CARGO) build --workspace --bins --locked
	@mkdir -p $(LAB)
	@for program in $(PROGRAMS); do ln -f $(TARGET)/debug/$$program $(LAB)/$$program; done

.PHONY: image
image: ## The mesh's container images as OCI archives in target/image; PROFILE=release to ship them
ifeq ($(PROFILE),release)
	@scripts/prepare build
	@# Each with the features it ships with, not the union of what the workspace asks for.
	@for package in proxy init control-plane cli; do \
		$(CARGO) build --release --locked --package heddle-$$package; done
	$(CARGO) build --release --locked --package heddle-tests --bin heddle-app --bin heddle-echo
	@scripts/image mesh $(TARGET)/release $(TARGET)/image
else
	@$(MAKE) --no-print-directory lab
	@scripts/image mesh $(TARGET)/debug $(TARGET)/image
endif

.PHONY: cluster-up
cluster-up: image ## A Kubernetes cluster on this machine, with our images; NODES=2 for two nodes
	@scripts/prepare cluster
	$(CLUSTER) up --nodes $(or $(NODES),1) $(addprefix --image $(TARGET)/image/,$(IMAGES))

.PHONY: cluster-down
cluster-down: ## Remove that cluster, whatever is left of it
	$(CLUSTER) down

.PHONY: e2e
e2e: image ## The mesh and the Gateway API's suite on a real cluster: its own, or that of KUBECONFIG
	@scripts/prepare cluster
	@scripts/e2e

.PHONY: conformance
conformance: image ## The Gateway API's own suite, alone; leaves target/gateway-api-conformance.yaml
	@scripts/prepare cluster
	@scripts/e2e conformance

.PHONY: bench
bench: PROFILE := $(if $(QUICK),quick-release,release)
bench: ## Side by side with Envoy and HAProxy; QUICK=1 for five minutes (root, Linux)
	@scripts/prepare lab
	$(CARGO) build --profile $(PROFILE) --locked --package heddle-proxy
	$(CARGO) build --profile $(PROFILE) --locked --package heddle-init \
		--package heddle-control-plane --package heddle-bench
	@peers=$$(bench/prepare); \
		$(TARGET)/$(PROFILE)/heddle-bench run $$peers $(if $(QUICK),--quick)

.PHONY: fuzz
fuzz: ## Hostile bytes for everything that reads them, FUZZ_SECONDS=60 for each target
	@scripts/prepare build
	$(CARGO) build --workspace --bins --locked
	$(TARGET)/debug/heddle-fuzz --seconds $(or $(FUZZ_SECONDS),60)

.PHONY: gen
gen: ## Write crds/, the chart's copies, docs/crds.md, and what the last bench and demo measured
	$(CARGO) run --quiet --locked --package heddle-resources --bin heddle-gen
	@[ ! -f $(TARGET)/bench/report.json ] || $(CARGO) run --locked --package heddle-bench -- render
	@[ ! -f $(TARGET)/demo/timeline.svg ] || cp $(TARGET)/demo/timeline.svg docs/demo-timeline.svg

.PHONY: audit
audit: ## Licences, sources and bans of every dependency (deny.toml)
	@scripts/prepare audit
	$(CARGO) deny --offline --workspace check licenses bans sources
