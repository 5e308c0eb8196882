# Everything that is done to this repository. `make` alone lists it.
TARGET := $(or $(CARGO_TARGET_DIR),target)
PACKAGES := $(TARGET)/package
# Words for `make bench`, such as BENCH="--quick" or BENCH="--only wireguard-go,ceiling --rounds 5".
BENCH ?=
# `lab` builds faster and runs slower; CI packages what it built for the lab.
PROFILE ?= release
# What is built for packages. CI builds all that it needs in the lab profile with one set of features, once.
BUILD ?= --package meshd --package coordinator
# What `make test` could not run, one line each, with the number of tests before it.
SKIPS := $(TARGET)/skips.txt
MESH_STRICT ?= 1

.PHONY: help check test fuzz lab bench profile package deny

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## /  \1\t/p' Makefile

check: ## Format, lints, documentation, purity of the brain
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --locked
	@if rustup target list --installed 2>/dev/null | grep -qx wasm32-unknown-unknown; then \
		echo cargo check --package mesh-proto --target wasm32-unknown-unknown; \
		cargo check --package mesh-proto --target wasm32-unknown-unknown --locked; \
	else \
		echo "SKIP purity of mesh-proto by compiling it for wasm: rustup target add wasm32-unknown-unknown"; \
	fi

test: ## All tests, as CI does: what cannot run here fails; with MESH_STRICT=0 it is skipped and counted
	@mkdir -p $(TARGET) && : > $(SKIPS)
	@MESH_STRICT=$(MESH_STRICT) MESH_SKIPS=$(abspath $(SKIPS)) cargo test --workspace --locked --no-fail-fast; \
	result=$$?; \
	cut -d' ' -f2- $(SKIPS); awk '{ sum += $$1 } END { printf "SKIP total: %d\n", sum }' $(SKIPS); \
	exit $$result

fuzz: ## Fuzz every parser that strangers or a damaged disk reach, SECS=60 each
	tests/fuzz/run $(or $(SECS),60)

lab: ## Two clusters with the same addresses, a VM and a coordinator, on this machine
	cargo lab

bench: ## Ours and other tunnels side by side; a table, the promised ratios, bench-report.json
	cargo run --quiet --profile lab --locked --package mesh-tests --bin mesh-bench -- $(BENCH)

profile: ## A flame graph and an account of both ends of a TCP stream, in target/profile
	tests/bench/profile

package: ## A deb and an rpm of each daemon, in target/package
	@command -v cargo-deb >/dev/null || cargo install --locked cargo-deb
	@command -v cargo-generate-rpm >/dev/null || cargo install --locked cargo-generate-rpm
	cargo build --profile $(PROFILE) --locked $(BUILD)
	rm -rf $(PACKAGES)
	mkdir -p $(PACKAGES)
	for crate in meshd coordinator; do \
		cargo deb --no-build --no-strip --profile $(PROFILE) --package $$crate --output $(PACKAGES)/ || exit 1; \
		cargo generate-rpm --profile $(PROFILE) --package $$crate --target-dir $(TARGET) --output $(PACKAGES)/ || exit 1; \
	done
	@ls -l $(PACKAGES)

deny: ## Licences, bans and sources of all dependencies
	@command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	cargo deny check licenses bans sources
