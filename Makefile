# What a developer runs. Tools are built from tools/go.mod and tools/lint/go.mod at their pinned versions.
BUF  := go tool -modfile=tools/go.mod buf
LINT := go tool -modfile=tools/lint/go.mod golangci-lint
FUZZTIME ?= 2m

.PHONY: alerts chart gen lint test test-short bench fuzz soak run replicas replicas-clean image

gen: ## generate Go, gateway and OpenAPI from the protos, and the generated docs
	rm -rf gen/authsvc gen/openapi/*.json examples/two-services/gen
	$(BUF) generate
	$(BUF) generate --template examples/two-services/buf.gen.yaml
	go generate ./...

lint: ## protos and Go
	$(BUF) lint
	$(BUF) format --diff --exit-code proto
	$(BUF) format --diff --exit-code examples/two-services/proto
	$(LINT) run ./...

test: ## everything, with the race detector and a few seconds of each fuzz target; prints a clock
	.ci/test

test-short: ## what a change in hand needs
	go test -short ./...

fuzz: ## every fuzz target for FUZZTIME
	.ci/fuzz $(FUZZTIME)

bench: ## every promised figure, beside its limit; prints a table, in some twenty-five minutes on a quiet machine
	go test -run '^$$' -bench . -benchtime 1x -timeout 60m ./bench

soak: ## what takes chance and hours: 200 kills, counts of thousands, long races; prints a clock
	.ci/soak

chart: ## the Helm chart: lint, render, validate, and refuse wrong values
	.ci/chart

alerts: ## cause nine of the alerts with real servers and a real Prometheus, and follow the runbook; prints seconds
	AUTHSVC_SOAK=1 AUTHSVC_TEST_REQUIRE=1 go test -tags soak -count=1 -timeout 20m -v -run '^TestAlertsAreCausedAndFollowed$$' ./test/live

run: ## a server to try, with a demo account
	go run ./cmd/authsvc serve -dev

DIR  = .replicas
PORT = 18000

replicas: ## three replicas, PostgreSQL with a standby, Redis and nginx, in DIR, on loopback from PORT on; Ctrl-C ends them
	deploy/replicas/install
	go build -o bin/ ./cmd/authsvc ./deploy/replicas
	@exec bin/replicas -dir $(DIR) -port $(PORT)

replicas-clean: ## remove what replicas keep in DIR
	@test ! -e $(DIR) || { test -f $(DIR)/issuer && flock -n $(DIR)/lock rm -rf $(DIR); } || { echo "$(DIR) is not the folder of replicas, or they run" >&2; exit 1; }

image: ## dist/authsvc-amd64.tar, built without Docker, looked at, and run; ARCH="amd64 arm64" for more
	deploy/image.sh $(ARCH)
