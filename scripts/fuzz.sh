#!/usr/bin/env bash
# Fuzzes every decoder and decision: scripts/fuzz.sh [seconds per target] [target...]
#
# Stable Rust and a C++ compiler are enough. First each file in fuzz/regressions/<target>/ is replayed, then the target runs on what
# is in fuzz/seeds/<target>/. Prints a line for each target; a finding fails, and says which file shows it.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"

seconds=${1:-10}
shift || true
triple=$(rustc -vV | sed -n 's/^host: //p')
# What cargo-fuzz asks of the compiler, but for the address sanitizer, which only a nightly one has: the code here is safe Rust.
export RUSTFLAGS="--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module \
-Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
# An own directory, whatever the environment says: these flags would rebuild everything else.
export CARGO_TARGET_DIR=$PWD/target

# With --target the flags are not used for build scripts and macros, which have no coverage runtime.
if ! cargo build --release --locked --quiet --target "$triple" --bins; then
  echo "fuzz: the targets do not build" >&2
  exit 1
fi

targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
  for file in src/bin/*.rs; do targets+=("$(basename "$file" .rs)"); done
fi

failed=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for target in "${targets[@]}"; do
  binary=$CARGO_TARGET_DIR/$triple/release/$target
  # What a run learns stays for the next one; it is not part of the repository.
  corpus=corpus-run/$target
  mkdir -p "$corpus" "regressions/$target"
  seeds=()
  if [ -d "seeds/$target" ]; then seeds=("seeds/$target"); fi

  if [ -n "$(ls -A "regressions/$target")" ]; then
    if ! "$binary" -timeout=10 "regressions/$target"/* >"$log" 2>&1; then
      printf '%-20s FAILED on a known input\n' "$target"
      tail -n 30 "$log"
      failed=1
      continue
    fi
  fi
  if "$binary" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=1024 -max_len=4096 -print_final_stats=1 \
    -artifact_prefix="regressions/$target/" "$corpus" ${seeds[@]+"${seeds[@]}"} >"$log" 2>&1; then
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    cover=$(sed -n 's/.*DONE *cov: *\([0-9]*\).*/\1/p' "$log")
    printf '%-20s ok  %s runs, %s places covered\n' "$target" "${runs:-?}" "${cover:-?}"
    rmdir --ignore-fail-on-non-empty "regressions/$target"
  else
    printf '%-20s FAILED, see the newest file in fuzz/regressions/%s\n' "$target" "$target"
    tail -n 40 "$log"
    failed=1
  fi
done
exit "$failed"
