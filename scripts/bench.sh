#!/usr/bin/env bash
# Measures what the mesh costs on this machine, in one run, as ratios: the node proxy beside no mesh and beside a bare
# relay placed where node proxies are (the limit of what any proxy in user space can do here) and beside sidecars, an
# Envoy (from PyPI) for each pod; the waypoint beside Envoy on the same resources. Needs root.
#
#   ./scripts/bench.sh                     three rounds of three seconds a shape: about five minutes
#   ./scripts/bench.sh --rounds 1 --seconds 1   a quick look
#   ./scripts/bench.sh --only tunnel       node proxies only; or: waypoint
#   ./scripts/bench.sh --sidecar-log       sidecars that write an access log
#   ./scripts/bench.sh --docs              put the charts into docs/plots too
#   ./scripts/bench.sh scale               one node proxy in meshes of 500, 5,000 and 50,000 workloads: time until it is
#                                          ready, memory of a workload, cost of one change; about five minutes
#   ./scripts/bench.sh crowd               one node proxy with 10, 100 and 1,000 pods on its node; about six minutes
#   ./scripts/bench.sh hostile             what one hostile peer costs a quiet pod beside it; about eight minutes
#   ./scripts/bench.sh soak --minutes 20   mixed load with churn of pods and policies: are memory and descriptors flat
#   ISTIO_ZTUNNEL=/path/to/ztunnel ./scripts/bench.sh    Istio's node proxy beside ours, under our agent and controller
# The numbers of every round are kept in target/bench.json, and drawn in target/plots.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/needs.sh"
cd "$root"
case "${1:-}" in -h|--help) sed -n '2,18p' "$0" | sed 's/^# \{0,1\}//'; exit 0 ;; esac

need_root
need_cargo
need_debian build-essential pkg-config iproute2 nftables procps
need_envoy
[ -n "${ISTIO_ZTUNNEL:-}" ] || say "Istio's ztunnel is not compared: ISTIO_ZTUNNEL names none"
say "Building the release programs"
cargo build --release --locked --workspace --bins
mkdir -p target
what=run
case "${1:-}" in scale|crowd|hostile|soak) what=$1 && shift ;; esac
if [ "$what" = soak ]; then AMBIT_BIN=$root/target/release exec target/release/ambit-bench soak "$@"; fi
json=target/bench.json
if [ "$what" != run ]; then json=target/bench-$what.json; fi
folders=(target/plots)
arguments=()
for argument in "$@"; do
  if [ "$argument" = --docs ]; then folders+=(docs/plots); else arguments+=("$argument"); fi
done
AMBIT_BIN=$root/target/release target/release/ambit-bench "$what" --json "$json" "${arguments[@]}"
for folder in "${folders[@]}"; do target/release/ambit-bench plot --json "$json" --out "$folder"; done
