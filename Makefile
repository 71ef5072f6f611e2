# Yumen: the targets that people use. `make help` lists them.
GO      ?= go
VERSION := $(shell cat VERSION)
LDFLAGS := -s -w -buildid= -X github.com/yumen-zt/yumen/internal/version.Version=$(VERSION)
LINT    := $(GO) tool -modfile=tools/go.mod
FUZZTIME ?= 2s

.DEFAULT_GOAL := help
.PHONY: help build cross demo test test-long check lint generate bench bench-budget needs fuzz

help: ## show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## write bin/yumen, one static binary
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/yumen ./cmd/yumen

cross: ## build the agent's program for every system that it is for
	@for s in linux/amd64 linux/arm64 windows/amd64 windows/arm64 darwin/amd64 darwin/arm64; do \
	  echo bin/yumen-$$s; GOOS=$${s%/*} GOARCH=$${s#*/} CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o bin/yumen-$${s%/*}-$${s#*/} ./cmd/yumen || exit 1; \
	done

demo: build ## run gateway, control center, agent and an application on this machine
	bin/yumen demo $(ARGS)

check: ## the quick half: formatting, vet, boundaries, unit tests
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	GO=$(GO) test/run.sh $$($(GO) list ./... | grep -v /test/)

test: needs check build fuzz ## everything that must pass, under 10 minutes
	YUMEN_BIN=$(CURDIR)/bin/yumen GO=$(GO) test/run.sh -count=1 ./test/...

test-long: build ## the long runs: race detector, 1 GiB transfers, 30 s of fuzzing a target
	@test/needs.sh long
	$(GO) test -race -timeout 40m $$($(GO) list ./... | grep -v /test/)
	YUMEN_BIN=$(CURDIR)/bin/yumen YUMEN_LONG=1 $(GO) test -count=1 -timeout 60m ./test/...
	$(MAKE) fuzz FUZZTIME=30s

fuzz: ## run every fuzz target for FUZZTIME
	@test/fuzz.sh $(FUZZTIME)

needs: ## install what the tests need (Debian, as root); elsewhere say what is missing
	@test/needs.sh

lint: ## staticcheck and golangci-lint
	$(LINT) staticcheck ./...

generate: ## write generated files anew; leaves no difference
	$(GO) generate ./...

bench: build ## the figures of the design, with peers side by side
	@test/needs.sh bench
	$(GO) test -run='^$$' -bench=. -benchmem ./bench/access/...
	bench/http/run.sh
	$(GO) run ./bench/xdp
	$(GO) run ./bench/tlcp
	YUMEN_BIN=$(CURDIR)/bin/yumen $(GO) run -C bench/tunnel .

bench-budget: build ## the 3 seconds of clauses 7.2 and 9.2: every link and table, in every situation (12 minutes, quiet machine)
	$(GO) build -o bin/bench-budget ./bench/budget
	YUMEN_BIN=$(CURDIR)/bin/yumen bin/bench-budget -n 10000 -out bin/budget $(ARGS)
