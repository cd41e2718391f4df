#!/usr/bin/env bash
# Counts, under valgrind, the instructions of the paths that every connection takes: decisions, records, tunnels, messages.
# Compares them with those kept in bench/counts.json and fails when a path got dearer. Needs no root and no quiet machine.
#
#   ./scripts/counts.sh                 all paths: about two minutes beyond the build
#   ./scripts/counts.sh --only tunnel   those with this in their name
#   ./scripts/counts.sh --keep          keep the new numbers
# Where a path spends them: callgrind_annotate target/counts/NAME.callgrind
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/needs.sh"
cd "$root"
case "${1:-}" in -h|--help) sed -n '2,8p' "$0" | sed 's/^# \{0,1\}//'; exit 0 ;; esac

need_cargo
need_debian build-essential pkg-config valgrind
say "Building what is counted"
# The whole workspace's features, so that the code is that of the release programs.
cargo build --release --locked --workspace --bin ambit-counts
exec target/release/ambit-counts "$@"
