# Sourced by demo.sh: what the same pods would need with one Envoy sidecar each, measured on real Envoys.
# shellcheck shell=bash

# A sidecar's bootstrap, lean on purpose: an outbound and an inbound listener, one cluster per service of the shop.
# A mesh's real configuration only adds to it.
sidecar_bootstrap() { # ADMIN-PORT
  local clusters="" service
  for service in web:10.96.0.11 cart:10.96.0.12 payments:10.96.0.13; do
    clusters+="
  - name: ${service%%:*}
    type: STATIC
    connect_timeout: 5s
    load_assignment: {cluster_name: ${service%%:*}, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: ${service##*:}, port_value: 80}}}}]}]}"
  done
  cat <<YAML
admin: {address: {socket_address: {address: 127.0.0.1, port_value: $1}}}
static_resources:
  listeners:
  - name: outbound
    address: {socket_address: {address: 127.0.0.1, port_value: $(($1 + 1))}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: outbound
          route_config: {virtual_hosts: [{name: cart, domains: ["cart"], routes: [{match: {prefix: "/"}, route: {cluster: cart}}]}, {name: any, domains: ["*"], routes: [{match: {prefix: "/"}, route: {cluster: payments}}]}]}
          http_filters: [{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
  clusters:$clusters
YAML
}

resident() { awk '/^VmRSS/{sum += $2} END {print sum + 0}' "/proc/$1/status" 2>/dev/null || echo 0; }
# The program's own pages: what is left when pages shared with other processes are split among them.
proportional() { awk '/^Pss:/{print $2}' "/proc/$1/smaps_rollup" 2>/dev/null || echo 0; }
mib() { awk -v k="$1" 'BEGIN { printf "%.1f MiB", k / 1024 }'; }

compare_memory() {
  local n pids=() pod sum=0 share=0 ours=0 waypoint meshed=(web cart payments-v1 payments-v2 batch)
  for n in 1 2; do ours=$((ours + $(resident "$(cat "$state/pid/ztunnel-n$n")"))); done
  waypoint=$(resident "$(cat "$state/pid/waypoint")")
  n=0
  for pod in "${meshed[@]}"; do
    sidecar_bootstrap $((19000 + n * 10)) >"$state/sidecar-$pod.yaml"
    start "sidecar-$pod" "$pod" "$ENVOY" -c "$state/sidecar-$pod.yaml" --concurrency 2 --base-id "$((4000 + n))" --log-level error
    n=$((n + 1))
  done
  n=0
  for pod in "${meshed[@]}"; do
    eventually 20 "the sidecar of $pod is ready" in_ns "$pod" curl -sf -m 1 "http://127.0.0.1:$((19000 + n * 10))/ready"
    n=$((n + 1))
  done
  for pod in "${meshed[@]}"; do
    pids+=("$(cat "$state/pid/sidecar-$pod")")
  done
  for n in "${pids[@]}"; do sum=$((sum + $(resident "$n"))); share=$((share + $(proportional "$n"))); done
  for pod in "${meshed[@]}"; do stop "sidecar-$pod" KILL; done
  printf '  %-52s %s\n' "two ztunnels, for all ${#meshed[@]} pods of the mesh" "$(mib $ours)"
  printf '  %-52s %s\n' "the waypoint" "$(mib "$waypoint")"
  printf '  %-52s %s (%s when shared pages are split)\n' "${#meshed[@]} Envoy $envoy_version sidecars, lean configuration" "$(mib $sum)" "$(mib $share)"
}
