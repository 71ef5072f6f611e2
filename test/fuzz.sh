#!/usr/bin/env bash
# Run every fuzz target for $1 (default 2s), two at a time on one worker each.
# Findings stay in the package's testdata/fuzz, as go test leaves them.
set -euo pipefail
cd "$(dirname "$0")/.."
export FUZZTIME=${1:-2s} OUT
OUT=$(mktemp -d)
trap 'rm -rf "$OUT"' EXIT

# One instrumented binary a package.
mapfile -t packages < <(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u)
for p in "${packages[@]}"; do
  go test -c -vet=off -fuzz=Fuzz -o "$OUT/$(echo "$p" | tr -c 'a-zA-Z0-9\n' _).test" "$p"
done

one() {
  package=$1 target=$2
  place="$OUT/$(echo "$package" | tr -c 'a-zA-Z0-9\n' _)" # two packages may have targets of one name
  binary="$place.test" log="$place.$target.log"
  if (cd "$package" && "$binary" -test.run='^$' -test.fuzz="^$target\$" -test.fuzztime="$FUZZTIME" \
      -test.fuzzminimizetime=1x -test.fuzzcachedir="$place.cache/$target" -test.parallel=1) >"$log" 2>&1; then
    echo "ok   $target ($package) $(grep -o 'execs: [0-9]*' "$log" | tail -n1)"
  else
    echo "FAIL $target ($package)"
    cat "$log"
    return 1
  fi
}
export -f one
for p in "${packages[@]}"; do
  for t in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' "$p"/*_test.go); do
    printf '%s %s\n' "$p" "$t"
  done
done | xargs -P 2 -L 1 bash -c 'one "$0" "$1"'
