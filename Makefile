# Skyloom. `make quickstart` is the first thing to try, `make test` the second.

GO      ?= go
PREFIX  ?= $(HOME)/.local
BIN     := bin
AGENTS  := internal/agentbin/bin
PKG     := github.com/skyloom/skyloom
VERSION ?= $(shell cat VERSION)
COMMIT  ?= $(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X $(PKG)/internal/version.Version=$(VERSION) -X $(PKG)/internal/version.Commit=$(COMMIT)

# Everything is pure Go. One setting for builds and tests means one build cache.
export CGO_ENABLED := 0

.PHONY: e2e-jobs all build sky sky-server sky-agent agents install quickstart test test-short lint vet docs docs-check cross chaos chaos-lab chaos-smoke lab e2e-ssh replay histories faults bench fuzz clean

all: build

build: sky sky-agent sky-server ## all three programs, in bin/

sky:
	@mkdir -p $(BIN)
	$(GO) build -ldflags "$(LDFLAGS)" -o $(BIN)/sky ./cmd/sky

sky-agent:
	@mkdir -p $(BIN)
	$(GO) build -ldflags "$(LDFLAGS)" -o $(BIN)/sky-agent ./cmd/sky-agent

# The server carries the agent for the nodes it brings up elsewhere.
agents:
	@mkdir -p $(AGENTS)
	@for arch in amd64 arm64; do \
	  GOOS=linux GOARCH=$$arch $(GO) build -trimpath -ldflags "$(LDFLAGS)" -o $(AGENTS)/sky-agent-linux-$$arch.tmp ./cmd/sky-agent && \
	  $(GO) run ./internal/agentbin/pack $(AGENTS)/sky-agent-linux-$$arch.tmp $(AGENTS)/sky-agent-linux-$$arch.zst && \
	  rm -f $(AGENTS)/sky-agent-linux-$$arch.tmp || exit 1; done

sky-server: agents
	@mkdir -p $(BIN)
	$(GO) build -ldflags "$(LDFLAGS)" -o $(BIN)/sky-server ./cmd/sky-server

install: build ## copies the programs to $(PREFIX)/bin
	install -d $(DESTDIR)$(PREFIX)/bin
	install -m 755 $(BIN)/sky $(BIN)/sky-server $(BIN)/sky-agent $(DESTDIR)$(PREFIX)/bin/

quickstart: build ## builds, starts the server, runs a first task
	@./examples/quickstart.sh $(BIN)/sky

test: build vet ## all tests, about ten minutes on two cores; what needs root or a browser skips and says so
	$(GO) test ./... -timeout 15m -p 2

test-short: ## unit tests only
	$(GO) test -short ./... -timeout 10m

vet:
	$(GO) vet ./...
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo "run gofmt -w on these"; exit 1; }

lint: vet ## vet plus staticcheck, at the version pinned here
	$(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...

docs: build ## generated references
	$(GO) run ./cmd/docgen docs/reference

docs-check: docs
	@git diff --exit-code -- docs/reference || { echo "the generated references are out of date: commit what make docs wrote"; exit 1; }

cross: ## what must compile elsewhere
	GOOS=darwin GOARCH=arm64 $(GO) build -o /dev/null ./cmd/sky
	GOOS=windows GOARCH=amd64 $(GO) build -o /dev/null ./cmd/sky
	GOOS=linux GOARCH=arm64 $(GO) build -o /dev/null ./cmd/sky-agent

cross-server: ## sky-server for darwin: a cold build of about ten minutes
	GOOS=darwin GOARCH=arm64 $(GO) build -o /dev/null ./cmd/sky-server
	GOOS=darwin GOARCH=arm64 $(GO) build -o /dev/null ./cmd/sky-agent

chaos: build ## 200 random kills, and one at every failpoint
	SKYLOOM_BIN=$(CURDIR)/$(BIN) SKYLOOM_CHAOS_KILLS=200 $(GO) test ./tests/chaos -count=1 -timeout 3h -v

chaos-lab: build ## as root, on hosts of a lab: 200 faults under clusters, 100 under 300 managed jobs, 10 s apart
	SKYLOOM_BIN=$(CURDIR)/$(BIN) SKYLOOM_LAB_EVENTS=200 SKYLOOM_LAB_JOBS=300 SKYLOOM_LAB_KILLS=100 $(GO) test ./tests/labchaos -count=1 -timeout 3h -v

e2e-ssh: build ## the whole product on hosts of a lab, as root: odd and bad hosts, 200 racing launches of two servers, a log of 1 GB
	SKYLOOM_E2E_SSH=all SKYLOOM_E2E_BIN=$(CURDIR)/$(BIN) $(GO) test ./tests/e2essh -count=1 -timeout 60m -v

lab: ## hosts to play with, as root: make lab ARGS="up 3", then bin/lab help
	@mkdir -p $(BIN)
	$(GO) build -o $(BIN)/lab ./tests/lab/cmd/lab
	@$(BIN)/lab $(ARGS)

e2e-jobs: build ## managed jobs: the training example through twenty preemptions
	SKYLOOM_TRAIN=20 $(GO) test ./tests/train ./tests/managed -count=1 -v

replay: ## recorded histories replay on this build
	$(GO) test ./tests/histories -count=1

histories: build ## records histories anew (after a change that a named version guards)
	SKYLOOM_RECORD=1 $(GO) test ./tests/histories -count=1 -run Record -v

faults: ## 5,000 seeded fault schedules in the time-skipping environment, 50 on the real engine
	SKYLOOM_SEEDS=5000 SKYLOOM_ENGINE_SEEDS=50 $(GO) test ./tests/faults -count=1 -timeout 2h -v

bench: build ## the table of the performance page, with the figures reached
	$(GO) run ./tests/bench

fuzz: ## a minute for each parser
	./tests/fuzz.sh 60s

clean:
	rm -rf $(BIN) $(AGENTS)/*.zst
