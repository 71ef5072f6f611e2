#!/bin/sh
# Measure Yumen beside nginx, haproxy, net/http and caddy; see README.md. The report, Markdown,
# goes to standard output. Settings, by environment:
#   ROUNDS=5 ROUND_SECONDS=3   rounds, and the length of one measurement
#   LIMIT=8m                   rounds that do not fit into it are left out
#   GATEWAY_CORE=0 LOAD_CORE=1 cores of the gateway, and of everything else
#   ONLY=h1-1k                 one workload: h1-1k h1-100k h2-1k handshake rate
#   YUMEN_BIN=bin/yumen        the binary; built when it is not given
#   BEFORE=                    another build of Yumen, to measure beside it
#   PEERS=                     those that are measured, such as before,yumen; default: all
set -eu
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/sbin:/sbin

missing=
need() { command -v "$1" >/dev/null || missing="$missing $2"; }
need "${GO:-go}" golang
need nginx nginx-light
need haproxy haproxy
need wrk wrk
need h2load nghttp2-client
need taskset util-linux
if [ -n "$missing" ]; then
  echo "bench/http needs these packages:$missing" >&2
  exit 1
fi
if [ "$(nproc)" -lt 2 ]; then
  echo "bench/http needs two cores: one for the gateway, one for everything else" >&2
  exit 1
fi

if [ -z "${YUMEN_BIN:-}" ]; then
  make -s build
  YUMEN_BIN=bin/yumen
fi
dir=$(mktemp -d)
child=
trap '[ -z "$child" ] || kill "$child" 2>/dev/null || :' INT TERM HUP
trap 'rm -rf "$dir"' EXIT
"${GO:-go}" build -o "$dir/bench" ./bench/http
taskset -c "${LOAD_CORE:-1}" "$dir/bench" -yumen "$YUMEN_BIN" -rounds "${ROUNDS:-5}" -length "${ROUND_SECONDS:-3}s" \
  -limit "${LIMIT:-8m}" -core "${GATEWAY_CORE:-0}" -only "${ONLY:-}" -before "${BEFORE:-}" -peers "${PEERS:-}" &
child=$!
status=0
wait "$child" || status=$?
wait "$child" 2>/dev/null || :
exit "$status"
