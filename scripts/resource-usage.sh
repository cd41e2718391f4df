#!/usr/bin/env bash
# Makes docs/resource-usage.md: what the mesh takes of a node with 1, 10, 25 and 50 pods, idle and at a fixed rate of
# requests, beside real Envoy sidecars that do the same work. Needs root; about 15 minutes.
#
#   ./scripts/resource-usage.sh                     all of it
#   ./scripts/resource-usage.sh --pods 1,10 --seconds 2 --rounds 1 --out target   a quick look, not into docs
#   ./scripts/resource-usage.sh --again             the page anew from the numbers of the last run
# The numbers of every round are kept in target/bench-resources.json.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/needs.sh"
cd "$root"
case "${1:-}" in -h|--help) sed -n '2,8p' "$0" | sed 's/^# \{0,1\}//'; exit 0 ;; esac

need_root
need_cargo
need_debian build-essential pkg-config iproute2 nftables procps
need_envoy
say "Building the release programs"
cargo build --release --locked --workspace --bins
out=(--out docs)
for argument in "$@"; do if [ "$argument" = --out ]; then out=(); fi; done
AMBIT_BIN=$root/target/release exec target/release/ambit-bench resources \
  --json target/bench-resources.json "${out[@]}" "$@"
