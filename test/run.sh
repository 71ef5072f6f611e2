#!/usr/bin/env bash
# go test (flags as -name=value), with one more chance: when at most three tests fail, each in a package
# that otherwise ran to its end, they are run once more, alone. Those that pass
# then are named at the end of the output: a test that depends on the moment is a
# fault, to be mended at its cause, but not a reason to throw a run of ten
# minutes away. Build faults, panics and time limits end the run at once.
set -uo pipefail
log=$(mktemp)
trap 'rm -f "$log"' EXIT
"${GO:-go}" test "$@" 2>&1 | tee "$log"
code=${PIPESTATUS[0]}
[ "$code" -eq 0 ] && exit 0
grep -qE '^(panic:|fatal error:|WARNING: DATA RACE|FAIL.*\[(build|setup) failed\])' "$log" && exit "$code"
# "--- FAIL: TestX" lines come before the "FAIL <package>" line that they belong to.
mapfile -t failed < <(awk '/^--- FAIL: /{t = t (t ? "|" : "") $3; n++} /^FAIL[ \t]+[^ \t]/{print $2, n + 0, t; t = ""; n = 0}' "$log")
total=0
for line in "${failed[@]}"; do
  read -r _ n _ <<<"$line"
  [ "$n" -eq 0 ] && exit "$code"
  total=$((total + n))
done
[ "$total" -ge 1 ] && [ "$total" -le 3 ] || exit "$code"
flags=()
for arg; do
  case $arg in -*) flags+=("$arg") ;; esac
done
for line in "${failed[@]}"; do
  read -r package _ tests <<<"$line"
  echo "once more: $package $tests"
  "${GO:-go}" test "${flags[@]}" -count=1 -run "^($tests)\$" "$package" || exit "$code"
done
for line in "${failed[@]}"; do
  read -r package _ tests <<<"$line"
  echo "UNSTEADY, passed at the second attempt: $package $tests (see above; mend its cause)"
done
