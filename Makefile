# Every action on this repository is a target here; `make help` lists them. CI calls nothing else.

SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help run stop clean-run build links fmt fmt-check lint layers unit posix integration test bench bench-filesystems fuzz deps-test

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ── use it ───────────────────────────────────────────────────────────────────
run: ## build, start the daemon as an ordinary user, pull an image, run a container
	@scripts/run.sh

stop: ## end what `make run` started
	@scripts/stop.sh

clean-run: stop ## the same, and delete its images, containers and logs
	@scripts/clean-run.sh

build: ## release binary and its other names in target/release
	cargo build --release --locked
	@$(MAKE) --no-print-directory links

links:
	@dir=$${CARGO_TARGET_DIR:-target}/release; \
	for name in dockerd dockerd-rootless.sh dockerd-rootless-setuptool.sh; do ln -sfn skiffd $$dir/$$name; done

# ── check it ─────────────────────────────────────────────────────────────────
test: deps-test fmt-check layers lint unit posix integration ## everything CI runs

deps-test: ## install what the tests need (as root or with sudo)
	@scripts/deps-test.sh

fmt: ## format
	cargo fmt --all

fmt-check:
	cargo fmt --all --check

lint: ## clippy, warnings are errors
	cargo clippy --workspace --all-targets --locked -- -D warnings

layers: ## dependencies point downward only, and each dangerous crate has one owner
	@scripts/layers.py
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --log-level error check bans licenses sources; \
	else echo "  (cargo-deny is not installed: licences and sources unchecked)"; fi

unit: ## unit tests and the storage drivers' conformance suite
	@scripts/unit.sh

posix: ## our FUSE overlay under pjdfstest and fsx; PEERS='kernel PROGRAM' adds others, STRESS=1 stress-ng
	@scripts/posix.sh

integration: ## black-box tests through the docker CLI, bollard and raw sockets; T='FILTER' picks some
	@scripts/integration.sh $(T)

bench: ## storage drivers and archive engine, then start, memory, `docker run`, pulls; ARGS='--compare NAME SOCKET' adds engines
	@scripts/bench.sh $(ARGS)

bench-filesystems: ## our FUSE overlay beside the kernel's and fuse-overlayfs; ARGS='--fuse NAME COMMAND' adds more
	@scripts/bench.sh filesystems $(ARGS)

fuzz: ## a fuzz target for some minutes; T=archive_apply|tar_reader|reference, SECONDS=300 (needs nightly Rust and cargo-fuzz)
	@scripts/fuzz.sh $(or $(T),archive_apply) $(or $(SECONDS),300)
