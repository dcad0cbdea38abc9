# The commands of this project; `make help` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# Go programs that do not depend on where and when they were built. The same for
# build, test and vet, or Kubernetes is compiled once more for each.
export CGO_ENABLED := 0
export GOFLAGS := -trimpath -buildvcs=false

# Most of what a test does is to wait. As many as tests/bed has control planes.
export RUST_TEST_THREADS := 3

CONTROL_PLANE := target/control-plane/control-plane
HELM := target/helm/helm
VENV := target/venv
READERS := target/readers
# Crash points are in a build with this feature only; one build for all that tests use.
FAILPOINTS := --features failpoints

.PHONY: help deps fmt lint test test-full demo dev bench crds control-plane helm venv readers machine-root

help: ## Show the commands.
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r name text; do printf '  %-14s %s\n' "$$name" "$$text"; done

deps: ## Check what must be installed, and fetch and build the rest.
	@tests/prerequisites
	@$(MAKE) --no-print-directory control-plane helm venv readers machine-root
	@cargo fetch --quiet --locked

fmt: ## Format all code.
	cargo fmt --all
	gofmt -w tests/control-plane

lint: helm ## Check formats, lints, the chart and that crds/ is what the code says.
	cargo fmt --all --check
	cargo clippy --workspace --all-targets $(FAILPOINTS) --locked -- -D warnings
	@unformatted=$$(gofmt -l tests/control-plane); test -z "$$unformatted" || { echo "not formatted: $$unformatted" >&2; exit 1; }
	cd tests/control-plane && go vet ./...
	$(HELM) lint --strict --quiet charts/agentfleet
	cargo run --quiet --locked $(FAILPOINTS) -- crds --dir target/crds
	diff --recursive --exclude=.gitkeep crds target/crds

test: deps ## Run all tests, the crash matrix as a seeded sample.
	cargo test --workspace --no-fail-fast $(FAILPOINTS) --locked
	cd tests/control-plane && go test -count=1 ./...
	$(VENV)/bin/pytest -q tests examples --ignore tests/hetzner-sim/conformance
	tests/hetzner-sim/conformance/run.sh $(VENV)/bin/python

test-full: deps ## Run all tests with the whole crash matrix.
	AGENTFLEET_CRASH_MATRIX=full cargo test --workspace --no-fail-fast $(FAILPOINTS) --locked

demo: deps ## Three agents and a paying customer on a real control plane, a simulated Hetzner Cloud and, as root, real machines.
	cargo build --workspace --bins $(FAILPOINTS) --locked
	target/debug/agentfleet-bed demo

dev: deps ## Start what the demo uses and keep it until Ctrl-C; see target/dev/env.
	cargo build --workspace --bins $(FAILPOINTS) --locked
	target/debug/agentfleet-bed dev

bench: deps ## Measure the release build; the numbers go to target/bench/summary.json.
	cargo bench --locked --bench fleet

crds: ## Write crds/ from the code.
	cargo run --quiet --locked -- crds --dir crds

control-plane: $(CONTROL_PLANE) ## Build the control plane that tests use (minutes at first, then cached).

helm: $(HELM) ## Build the Helm that tests use.

machine-root: ## Make the Debian that real machines boot (as root; a minute at first, then cached).
	@tests/machine-root/build target/machine-root

venv: $(VENV)/requirements.txt ## Install Hetzner's Python client and what Python tests need.

readers: $(READERS)/node_modules/.package-lock.json ## Install Bun, dotenv and Claude Code, which read what is written for agents.

# The API server says which version it is only if the linker is told.
KUBERNETES = $(shell sed -nE 's/^\tk8s.io\/kubernetes (v[0-9.]+)$$/\1/p' tests/control-plane/go.mod)
K8S = k8s.io/component-base/version
$(CONTROL_PLANE): $(shell find tests/control-plane -type f -not -name '*_test.go')
	cd tests/control-plane && go build -o $(CURDIR)/$@ -ldflags "-s -w \
		-X $(K8S).gitVersion=$(KUBERNETES) -X $(K8S).gitCommit= \
		-X $(K8S).gitMajor=$(word 1,$(subst ., ,$(KUBERNETES:v%=%))) -X $(K8S).gitMinor=$(word 2,$(subst ., ,$(KUBERNETES)))" .

# Helm takes a chart's kubeVersion to ask for the Kubernetes that it was told of.
HELM_VERSION = $(shell sed -nE 's/^\thelm.sh\/helm\/v3 (v[0-9.]+).*/\1/p' tests/helm/go.mod)
HELM_MINOR = $(shell sed -nE 's/^\tk8s.io\/client-go v0\.([0-9]+)\..*/\1/p' tests/helm/go.mod)
HELM_FOR = -X helm.sh/helm/v3/pkg/$(1).k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/$(1).k8sVersionMinor=$(HELM_MINOR)
$(HELM): tests/helm/go.mod tests/helm/go.sum
	cd tests/helm && go build -o $(CURDIR)/$@ -ldflags "-s -w \
		-X helm.sh/helm/v3/internal/version.version=$(HELM_VERSION) \
		$(call HELM_FOR,chartutil) $(call HELM_FOR,lint/rules)" helm.sh/helm/v3/cmd/helm

$(VENV)/requirements.txt: tests/requirements.txt examples/billing/requirements.txt
	python3 -m venv --clear $(VENV)
	$(VENV)/bin/pip install --quiet --requirement $<
	cp $< $@

$(READERS)/node_modules/.package-lock.json: tests/readers/package.json tests/readers/package-lock.json
	mkdir -p $(READERS)
	cp $^ $(READERS)/
	cd $(READERS) && npm ci --no-audit --no-fund --silent
