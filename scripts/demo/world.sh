# Sourced by demo.sh: two nodes and their pods as network namespaces of this machine, and the programs in them.
# shellcheck shell=bash
#
#   ambit-demo-fabric   a switch between the nodes
#   ambit-demo-n1, -n2  the nodes: 172.31.0.1, .2; each routes its pods' 10.244.N.0/24 and fd00:10:244:N::/64
#   ambit-demo-control  the controller: 172.31.0.100
#   ambit-demo-web ...  the pods

prefix=ambit-demo
state=/tmp/ambit-demo            # keys, tokens, logs, pids, captures; made new at every start
manifests=$state/manifests
bin=$root/target/release
pods_n1=(web payments-v2 legacy batch)
pods_n2=(cart payments-v1 waypoint)
declare -A pod_ip=([web]=10.244.1.11 [payments-v2]=10.244.1.14 [legacy]=10.244.1.15 [batch]=10.244.1.16
  [cart]=10.244.2.12 [payments-v1]=10.244.2.13 [waypoint]=10.244.2.20)

in_ns() { local ns=$1; shift; ip netns exec "$prefix-$ns" "$@"; }

# start NAME NAMESPACE COMMAND...: runs a program in a namespace, its output in $state/log/NAME.log.
start() {
  local name=$1 ns=$2; shift 2
  # Not through a function: the number noted must be the program's, not that of a shell around it.
  ip netns exec "$prefix-$ns" "$@" >>"$state/log/$name.log" 2>&1 &
  echo $! >"$state/pid/$name"
  disown
}
stop() { local pid; pid=$(cat "$state/pid/$1" 2>/dev/null) || return 0; kill "-${2:-TERM}" "$pid" 2>/dev/null || true; rm -f "$state/pid/$1"; }

# eventually SECONDS WHAT COMMAND...: waits until the command succeeds, or says what did not happen.
eventually() {
  local seconds=$1 what=$2 deadline; shift 2
  deadline=$((SECONDS + seconds))
  until "$@" >/dev/null 2>&1; do
    if [ "$SECONDS" -ge "$deadline" ]; then
      echo "not within $seconds s: $what" >&2
      echo "the programs' logs are in $state/log:" >&2
      tail -n 5 "$state"/log/*.log >&2 || true
      return 1
    fi
    sleep 0.1
  done
}

# Everything an earlier run may have left, finished or not.
clean() {
  local ns
  [ -d "$state/pid" ] && for p in "$state"/pid/*; do [ -e "$p" ] && stop "$(basename "$p")" KILL; done
  for ns in $(ip netns list 2>/dev/null | awk '{print $1}' | grep "^$prefix-" || true); do
    ip netns pids "$ns" 2>/dev/null | xargs -r kill -KILL 2>/dev/null || true
    ip netns delete "$ns" 2>/dev/null || true
    rm -rf "/etc/netns/$ns"
  done
  rm -rf "$state"
}

# join NS_A IF_A NS_B IF_B: a cable between two namespaces.
join() {
  ip link add "$2" netns "$prefix-$1" type veth peer name "$4" netns "$prefix-$3"
  ip -n "$prefix-$1" link set "$2" up
  ip -n "$prefix-$3" link set "$4" up
}

make_namespace() {
  ip netns add "$prefix-$1"
  ip -n "$prefix-$1" link set lo up
  in_ns "$1" sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
  mkdir -p "/etc/netns/$prefix-$1"
  {
    echo "127.0.0.1 localhost"
    echo "10.96.0.11 web"; echo "10.96.0.12 cart"; echo "10.96.0.13 payments"
    echo "172.31.0.100 istiod.istio-system.svc controller"
  } >"/etc/netns/$prefix-$1/hosts"
}

make_node() { # NUMBER
  local n=$1 other=$((3 - $1))
  make_namespace "n$n"
  join "n$n" eth0 fabric "n$n"
  ip -n "$prefix-fabric" link set "n$n" master switch
  ip -n "$prefix-n$n" address add "172.31.0.$n/24" dev eth0
  ip -n "$prefix-n$n" address add "fd00:172:31::$n/64" dev eth0
  in_ns "n$n" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
  ip -n "$prefix-n$n" route add "10.244.$other.0/24" via "172.31.0.$other"
  ip -n "$prefix-n$n" route add "fd00:10:244:$other::/64" via "fd00:172:31::$other"
  # What kube-proxy does on a node without a mesh: service addresses to pod addresses.
  in_ns "n$n" nft -f - <<'NFT'
table ip kube_proxy {
  chain services {
    type nat hook prerouting priority dstnat;
    ip daddr 10.96.0.11 tcp dport 80 dnat to 10.244.1.11:8080
    ip daddr 10.96.0.12 tcp dport 80 dnat to 10.244.2.12:8080
    ip daddr 10.96.0.12 tcp dport 9000 dnat to 10.244.2.12:9000
    ip daddr 10.96.0.13 tcp dport 80 dnat to 10.244.2.13:8080
  }
}
NFT
}

make_pod() { # NODE-NUMBER NAME
  local n=$1 name=$2 ip=${pod_ip[$2]} six
  six="fd00:10:244:$n::${ip##*.}"
  make_namespace "$name"
  join "$name" eth0 "n$n" "v$name"
  ip -n "$prefix-$name" address add "$ip/32" dev eth0
  ip -n "$prefix-$name" address add "$six/128" dev eth0
  ip -n "$prefix-n$n" address add 169.254.1.1/32 dev "v$name"
  ip -n "$prefix-$name" route add 169.254.1.1 dev eth0
  ip -n "$prefix-$name" route add default via 169.254.1.1
  ip -n "$prefix-n$n" route add "$ip/32" dev "v$name"
  ip -n "$prefix-n$n" route add "$six/128" dev "v$name"
  ip -n "$prefix-n$n" address add fe80::1/64 dev "v$name" nodad
  ip -n "$prefix-$name" route add default via fe80::1 dev eth0
}

make_network() {
  local pod
  mkdir -p "$state"/{log,pid,tokens,capture,run,controller}
  make_namespace fabric
  ip -n "$prefix-fabric" link add switch type bridge
  ip -n "$prefix-fabric" link set switch up
  make_node 1
  make_node 2
  make_namespace control
  join control eth0 fabric control
  ip -n "$prefix-fabric" link set control master switch
  ip -n "$prefix-control" address add 172.31.0.100/24 dev eth0
  ip -n "$prefix-control" route add 10.244.1.0/24 via 172.31.0.1
  ip -n "$prefix-control" route add 10.244.2.0/24 via 172.31.0.2
  for pod in "${pods_n1[@]}"; do make_pod 1 "$pod"; done
  for pod in "${pods_n2[@]}"; do make_pod 2 "$pod"; done
}

start_apps() {
  local pod
  for pod in web cart payments-v1 payments-v2; do
    start "app-$pod" "$pod" /usr/bin/python3 "$root/scripts/demo/app.py" "${pod%-v[12]}" "$([[ $pod == *-v2 ]] && echo v2 || echo v1)"
  done
  eventually 30 "the shop's services answer" in_ns legacy curl -sf -m 1 http://10.244.2.12:8080/
  eventually 30 "the shop's services answer" in_ns legacy curl -sf -m 1 http://10.244.1.14:8080/
}

token() { # FILE NAMESPACE SERVICE-ACCOUNT POD POD-UID NODE
  "$bin/controller" token --state "$state/controller" --namespace "$2" --service-account "$3" --pod "$4" \
    --pod-uid "$5" --node "$6" >"$state/tokens/$1"
}

start_controller() {
  start controller control "$bin/controller" serve --manifests "$manifests" --state "$state/controller"
  eventually 15 "the controller is ready" in_ns control curl -sf -m 1 http://127.0.0.1:15014/healthz/ready
}

# The environment that every proxy shares: where the controller is, and whom to believe.
proxy_env() { # TOKEN POD NAMESPACE SERVICE-ACCOUNT NODE IP
  printf '%s\n' "XDS_ADDRESS=https://istiod.istio-system.svc:15012" "CA_ADDRESS=https://istiod.istio-system.svc:15012" \
    "XDS_ROOT_CA=$state/controller/root-cert.pem" "CA_ROOT_CA=$state/controller/root-cert.pem" \
    "AUTH_TOKEN=$state/tokens/$1" "POD_NAME=$2" "POD_NAMESPACE=$3" "SERVICE_ACCOUNT=$4" "NODE_NAME=$5" "INSTANCE_IP=$6"
}

start_ztunnel() { # NUMBER
  local n=$1
  token "ztunnel-n$n" istio-system ztunnel "ztunnel-n$n" "ztunnel-n$n" "n$n"
  mapfile -t settings < <(proxy_env "ztunnel-n$n" "ztunnel-n$n" istio-system ztunnel "n$n" "172.31.0.$n")
  start "ztunnel-n$n" "n$n" env "${settings[@]}" INPOD_UDS="$state/run/ztunnel-n$n.sock" "$bin/ztunnel" proxy ztunnel
}

start_node() { # NUMBER
  local n=$1
  start "agent-n$n" "n$n" "$bin/agent" --node-name "n$n" --manifests "$manifests" --zds-socket "$state/run/ztunnel-n$n.sock"
  start_ztunnel "$n"
  eventually 20 "ztunnel on n$n is ready" in_ns "n$n" curl -sf -m 1 http://127.0.0.1:15021/healthz/ready
}

start_waypoint() {
  token waypoint shop waypoint waypoint shop-waypoint n2
  mapfile -t settings < <(proxy_env waypoint waypoint shop waypoint n2 10.244.2.20)
  start waypoint waypoint env "${settings[@]}" "$bin/waypoint" proxy waypoint
  eventually 20 "the waypoint is ready" in_ns waypoint curl -sf -m 1 http://127.0.0.1:15021/healthz/ready
}

# capture NAME: what passes between the nodes, from now on, in $state/capture/NAME.pcap.
capture() {
  start "capture-$1" fabric tcpdump -Z root --immediate-mode -i n2 -U -w "$state/capture/$1.pcap" "tcp and not host 172.31.0.100"
  eventually 10 "the capture runs" grep -q "listening on" "$state/log/capture-$1.log"
}
# readable NAME MARKER: how many captured packets hold the marker as readable text.
readable() {
  stop "capture-$1" TERM
  sleep 0.3
  tcpdump -r "$state/capture/$1.pcap" -A 2>/dev/null | grep -c -- "$2" || true
}
packets() { tcpdump -r "$state/capture/$1.pcap" 2>/dev/null | wc -l; }
