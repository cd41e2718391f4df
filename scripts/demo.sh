#!/usr/bin/env bash
# Runs an ambient mesh on this machine and shows it at work on real traffic: two nodes and seven pods as network
# namespaces, a controller that reads a folder of Kubernetes manifests, an agent and a ztunnel on each node, a
# waypoint. Installs what it needs, builds the release programs, cleans up at the end.
#
#   ./scripts/demo.sh           the whole show, then clean up
#   ./scripts/demo.sh --keep    leave the mesh running at the end, and say how to look around
#   ./scripts/demo.sh --clean   remove what --keep, or a broken run, left behind
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/needs.sh"
cd "$root"
. scripts/demo/world.sh

keep=no
case "${1:-}" in
  '') ;;
  --keep) keep=yes ;;
  --clean) need_root; clean; echo "Nothing is left."; exit 0 ;;
  -h|--help) sed -n '2,9p' "$0" | sed 's/^# \{0,1\}//'; exit 0 ;;
  *) die "unknown option '$1'; see --help" ;;
esac

need_root
need_cargo
need_debian build-essential pkg-config iproute2 nftables tcpdump curl procps python3
need_envoy
say "Building the release programs"
cargo build --release --locked --workspace --bins

began=$SECONDS
part() { echo; say "$* ($((SECONDS - began)) s)"; }
# show COMMAND...: prints the command as a person would type it, runs it, prints what came back.
show() {
  local shown=("$@")
  [ "$1" = in_ns ] && shown=("ip netns exec $prefix-$2" "${@:3}")
  shown=("${shown[@]//$bin\//}")
  printf '\033[2m$ %s\033[0m\n' "${shown[*]//$'\n'/\\n}"
  "$@" 2>&1 | sed 's/^/  /'
  return "${PIPESTATUS[0]}"
}
expect() { # WHAT COMMAND...: the show stops where something is not as it should be
  local what=$1; shift
  if "$@"; then echo "  ✓ $what"; else echo "  ✗ $what" >&2; finish=failed; exit 1; fi
}
equals() { [ "$1" = "$2" ]; }
status_of() { local ns=$1; shift; in_ns "$ns" curl -s -o /dev/null -w '%{http_code}' -m 5 "$@" 2>/dev/null || true; }
log_of() { grep -h "$2" "$state/log/$1.log" | tail -n "${3:-1}"; }

finish=ok
leave() {
  local code=$?
  if [ "$keep" = yes ] && [ "$code" = 0 ]; then return; fi
  if [ "$code" != 0 ]; then
    rm -rf /tmp/ambit-demo-logs && cp -r "$state/log" /tmp/ambit-demo-logs 2>/dev/null || true
    echo "The show broke off; the programs' logs are kept in /tmp/ambit-demo-logs." >&2
  fi
  clean
}
trap leave EXIT
trap 'exit 130' INT TERM

clean # what an earlier run may have left
part "Two nodes and seven pods, as network namespaces"
make_network
cp -r deploy/one-machine/shop "$manifests" 2>/dev/null || { mkdir -p "$manifests"; cp deploy/one-machine/shop/*.yaml "$manifests"; }
start_apps
show ip netns list

part "Before the mesh: what web says to cart can be read on the wire"
capture before
show in_ns web curl -s -m 5 "http://cart/?card=4111-1111" || true
seen=$(readable before "card=4111-1111")
echo "  packets between the nodes in which the card number can be read: $seen"
expect "the card number is readable on the wire" [ "$seen" -gt 0 ]

part "The mesh starts: controller, two agents, two ztunnels, a waypoint"
"$bin/controller" init --state "$state/controller" >>"$state/log/controller.log" 2>&1
start_controller
start_node 1
start_node 2
start_waypoint
echo "  controller, agents, ztunnels and waypoint are ready"

part "The namespace opts in, by a label in its manifest"
opt_in() { sed -i 's/^  name: shop$/  name: shop\n  labels:\n    istio.io\/dataplane-mode: ambient/' "$manifests/namespaces.yaml"; }
opt_in
printf '\033[2m$ sed -i … %s   # kind: Namespace, name: shop\033[0m\n  labels:\n    istio.io/dataplane-mode: ambient\n' "manifests/namespaces.yaml"
hbone_pods() { in_ns n1 "$bin/ambitctl" workloads -o json | grep -c '"protocol": *"HBONE"'; }
enrolled() { [ "$(hbone_pods)" -ge 5 ]; }
eventually 20 "the pods of shop and reports are in the mesh" enrolled
show in_ns n1 "$bin/ambitctl" workloads

part "After: the same request, and a capture of it"
capture after
show in_ns web curl -s -m 5 "http://cart/?card=4111-1111"
seen=$(readable after "card=4111-1111\|client_address")
echo "  packets captured between the nodes: $(packets after); with anything of it readable: $seen"
expect "nothing of it is readable on the wire" equals "$seen" 0

part "Who talked to whom: the identity each side saw"
echo "  the client's node proxy:"; log_of ztunnel-n1 'direction="\?outbound\|"direction":"outbound"' | sed 's/^/    /'
echo "  the server's node proxy:"; log_of ztunnel-n2 'direction="\?inbound\|"direction":"inbound"' | sed 's/^/    /'
show in_ns n2 "$bin/ambitctl" certificates

part "L4: a DENY takes effect on a live connection"
# bash's own sockets: a fresh machine need not have a program for this.
start ticker batch bash -c "exec 3<>/dev/tcp/10.96.0.12/9000 && cat <&3; echo; echo closed at \$(date +%T.%N)"
eventually 10 "prices flow to reports/batch" grep -q "price 3" "$state/log/ticker.log"
show tail -n 2 "$state/log/ticker.log"
show cp deploy/one-machine/steps/deny-reports.yaml "$manifests/"
echo "  applied at $(date +%T.%N)"
eventually 10 "the live connection of reports/batch is closed" grep -q closed "$state/log/ticker.log"
show tail -n 2 "$state/log/ticker.log"
expect "a new connection is refused too" equals "$(status_of batch http://10.96.0.12/)" 000
expect "web is still served" equals "$(status_of web http://cart/)" 200
log_of ztunnel-n2 'polic' | sed 's/^/    /'

part "STRICT: a client outside the mesh is refused"
expect "without it, plaintext from outside is let in" equals "$(status_of legacy http://10.244.2.12:8080/)" 200
show cp deploy/one-machine/steps/strict.yaml "$manifests/"
refused() { [ "$(status_of legacy http://10.244.2.12:8080/)" = 000 ]; }
eventually 10 "the client outside is refused" refused
show in_ns legacy curl -sS -m 5 http://10.244.2.12:8080/ || true
expect "web is still served" equals "$(status_of web http://cart/)" 200

part "The waypoint: 90/10 between two versions, and a header that chooses"
show cp deploy/one-machine/steps/route.yaml "$manifests/"
sed -i '/^kind: Service$/,/^spec:/ s/^  name: payments$/  name: payments\n  labels:\n    istio.io\/use-waypoint: waypoint/' "$manifests/payments.yaml"
waypoint_is_known() { in_ns n1 "$bin/ambitctl" services | grep payments | grep -q waypoint; }
eventually 15 "web's node proxy knows the waypoint of payments" waypoint_is_known
# Ten in a row: one alone may come to v2 without the route.
tester_sees_v2() {
  local seen
  seen=$(in_ns web sh -c 'for i in $(seq 10); do echo "url=http://payments/"; done | curl -s -m 5 -H "x-tester: yes" -K -' | grep -o '"version": "v2"' | wc -l)
  [ "$seen" = 10 ]
}
eventually 15 "a tester's requests reach v2" tester_sees_v2
show in_ns web curl -s -m 5 -H 'x-tester: yes' http://payments/
printf '\033[2m$ for i in $(seq 400); do curl -s http://payments/; done | sort | uniq -c\033[0m\n'
in_ns web sh -c 'for i in $(seq 400); do echo "url=http://payments/"; done | curl -s -m 30 -K - ' | grep -o '"version": "v[12]"' | sort | uniq -c | sed 's/^/  /' | tee "$state/split"
v2=$(awk '/v2/{print $1}' "$state/split")
expect "about ten of a hundred went to v2 ($v2 of 400)" [ "${v2:-0}" -ge 15 -a "${v2:-0}" -le 70 ]

part "L7: GET is allowed, DELETE is not"
show cp deploy/one-machine/steps/read-only.yaml "$manifests/"
delete_refused() { [ "$(status_of web -X DELETE http://payments/orders/7)" = 403 ]; }
eventually 10 "DELETE is refused" delete_refused
show in_ns web curl -s -m 5 -o /dev/null -w '%{http_code}\n' http://payments/orders/7
show in_ns web curl -s -m 5 -w ' %{http_code}\n' -X DELETE http://payments/orders/7
expect "GET is answered 200" equals "$(status_of web http://payments/orders/7)" 200
show in_ns n1 "$bin/ambitctl" explain shop/web to payments.shop:80 || true

part "A node proxy dies (SIGKILL): nothing leaks, and traffic returns when it is back"
capture killed
show kill -KILL "$(cat "$state/pid/ztunnel-n1")"
expect "while it is down, a request fails rather than go in plaintext" equals "$(status_of web "http://cart/?card=4111-1111")" 000
start_ztunnel 1
back() { [ "$(status_of web "http://cart/?card=4111-1111")" = 200 ]; }
eventually 20 "traffic returns" back
seen=$(readable killed "card=4111-1111")
echo "  packets between the nodes with the card number readable, before, during and after: $seen"
expect "nothing leaked" equals "$seen" 0

part "Memory: one node proxy for all pods, beside one Envoy sidecar each"
. scripts/demo/sidecars.sh
compare_memory

part "Done in $((SECONDS - began)) s"
if [ "$keep" = yes ]; then
  cat <<TEXT
The mesh is still running. To look around:
  export PATH=$bin:\$PATH
  ip netns exec ambit-demo-web curl -s http://payments/              be the shop's web
  ip netns exec ambit-demo-n1 ambitctl workloads                     what the node proxy of n1 knows
  ip netns exec ambit-demo-n1 ambitctl connections                   what flows through it now
  ip netns exec ambit-demo-n1 ambitctl explain shop/web to cart.shop:80
  ip netns exec ambit-demo-n1 curl -s localhost:15020/metrics        its metrics
  $manifests    the manifests: edit them, and watch what happens
  $state/log    the programs' logs
To stop it: ./scripts/demo.sh --clean
TEXT
fi
