# byokd. `make demo` and `make test` are all that a fresh Debian machine with Go
# needs; `make help` lists the rest.

VERSION ?= $(shell git describe --tags --always --abbrev=12 --dirty 2>/dev/null || echo devel)
BIN     := bin
LDFLAGS := -s -w -X main.version=$(VERSION)
GO      ?= go

SHELL       := /bin/bash
.SHELLFLAGS := -o pipefail -c

# Tools of `make lint` and `make package`, run at these versions without being
# installed. Later versions of nfpm need modules that the module proxy has not.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.9.0
NFPM        := github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2
CYCLONEDX   := github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@v1.10.0

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## build byokd, byokctl and awssim into bin/
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/ ./cmd/byokd ./cmd/byokctl ./cmd/awssim

.PHONY: package
package: setup ## .deb and .rpm with man pages and SBOMs into dist/, for ARCHS (default: amd64 and arm64)
	@GO='$(GO)' VERSION='$(VERSION)' LDFLAGS='$(LDFLAGS)' NFPM='$(NFPM)' CYCLONEDX='$(CYCLONEDX)' ARCHS='$(ARCHS)' DIST='$(or $(DIST),dist)' packaging/build

.PHONY: reproducible
reproducible: package ## build the packages once more, elsewhere and from nothing, and compare
	@.ci/reproducible

.PHONY: boot
boot: package ## install the package on a real systemd, booted in namespaces, and try it there
	@.ci/boot

.PHONY: setup
setup: ## install with apt what tests and demo need, where it is missing
	@.ci/setup

.PHONY: demo
demo: setup build ## the main job on embedded parts: SoftHSM and awssim on loopback
	@docs/demo.sh

.PHONY: test
test: setup ## all tests, on real SoftHSM tokens and over HTTP against awssim
	$(GO) test -race -timeout 40m ./...

.PHONY: crash
crash: setup ## each request and call made to fail, and byokd killed at each: hundreds of cases
	BYOKD_CRASH=all $(GO) test -timeout 60m -count=1 -v -run 'TestKilled|TestCrashMatrix|TestEveryCallIsCovered' ./daemon/lifecycle ./cmd/byokd

.PHONY: soak
soak: setup ## simulated years with faults, BYOKD_SOAK_MINUTES long (default 60) or BYOKD_SOAK_YEARS
	BYOKD_SOAK_MINUTES=$(or $(BYOKD_SOAK_MINUTES),60) $(GO) test -timeout 2h -count=1 -v -run TestSoak ./daemon

.PHONY: years
years: setup ## ten years of a hundred groups without faults, in which nothing grows; a thousand groups that come and go
	BYOKD_GROUPS=$(or $(BYOKD_GROUPS),100) BYOKD_YEARS=$(or $(BYOKD_YEARS),10) BYOKD_CHURN=1000 \
		$(GO) test -timeout 3h -count=1 -v -run 'TestTenYears|TestGroupsComeAndGo' ./daemon

.PHONY: sample
sample: setup ## a sample of crash, soak and torture, minutes, with what they did; ten thousand files; what thousands of groups cost
	BYOKD_SOAK_MINUTES=1 $(GO) test -timeout 10m -count=1 -v -run 'TestKilled|TestCrashMatrix|TestSoak|TestTorture|TestTenThousand|TestCostsDoNotGrow|TestStoredTogether' ./daemon/lifecycle ./cmd/byokd ./daemon \
		| grep -Ev '^ *(=== |--- PASS: .*/)'

.PHONY: bench
bench: ## how fast and how light: a line per benchmark, BENCH chooses (docs/performance.md)
	@.ci/setup bench
	@$(GO) test -run '^$$' -bench '$(or $(BENCH),.)' -benchtime 1x -timeout 60m ./hsm ./daemon/jobstore ./daemon ./cmd/byokd | grep -E '^(bench: |---|FAIL|panic|\s+.*_test.go)'

.PHONY: replay
replay: ## replay recorded interactions with AWS on awssim: make replay CASES="FILE…"
	$(GO) run ./cloud/awssim/replay $(CASES)

# What is not worth reading of a run that went well.
CONFORMED := '^ *(time=|=== |\{)|_test\.go:[0-9]+: passed '

.PHONY: conformance
conformance: ## the operations that byokd uses, on awssim and on independent emulators; lists what deviates or is not run
	$(GO) test -count=1 -v ./cloud/conformance | grep -Ev $(CONFORMED)
	cd cloud/conformance/localkms && $(GO) test -count=1 -v ./... | grep -Ev $(CONFORMED)

.PHONY: lint
lint: ## vet, staticcheck, gofmt, go.mod, known vulnerabilities
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	@test -z "$$(gofmt -l .)" || { echo "gofmt would change:"; gofmt -l .; exit 1; }
	$(GO) mod tidy -diff
	@if out=$$($(GO) run $(GOVULNCHECK) ./... 2>&1); then echo "govulncheck: no known vulnerabilities"; \
	elif echo "$$out" | grep -q 'fetching vulnerabilities'; then echo "govulncheck: NOT RUN, its database cannot be reached from here"; \
	else echo "$$out"; exit 1; fi

.PHONY: fuzz
fuzz: setup ## every fuzz target for FUZZTIME each (default 10s)
	@.ci/fuzz $(or $(FUZZTIME),10s)

.PHONY: clean
clean: ## remove what build made
	rm -rf $(BIN) dist
