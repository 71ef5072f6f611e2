#!/usr/bin/env bash
# Install the peers that the tests drive: an HTTP server, a database, clients.
# On Debian as root it installs what is missing; elsewhere it names it.
set -euo pipefail
declare -A package=(
  [openssl]=openssl [curl]=curl [nginx]=nginx-light [redis-server]=redis-server [redis-cli]=redis-tools [ip]=iproute2
  [tshark]=tshark [nmap]=nmap [nft]=nftables [ping]=iputils-ping [clang-14]=clang-14 [llvm-strip]=llvm
  [ssh]=openssh-client [sshd]=openssh-server [git]=git [dig]=bind9-dnsutils [dnsmasq]=dnsmasq-base [iperf3]=iperf3 [gtlsclient]=ngtcp2-client
)
if [ "${1:-}" = bench ]; then # the peers that are measured beside us
  package+=([haproxy]=haproxy [wrk]=wrk [h2load]=nghttp2-client [caddy]=caddy [xdp-filter]=xdp-tools [openvpn]=openvpn)
fi
if [ "${1:-}" = long ]; then # the peers of the long tests
  package+=([node]=nodejs [npm]=npm [chromium]=chromium [javac]=default-jdk-headless [slowhttptest]=slowhttptest [sslscan]=sslscan [testssl]=testssl.sh)
fi
missing=()
for command in "${!package[@]}"; do
  command -v "$command" >/dev/null || [ -x "/usr/sbin/$command" ] || [ -x "/sbin/$command" ] || missing+=("${package[$command]}")
done
[ -e /usr/include/bpf/bpf_helpers.h ] || missing+=(libbpf-dev) # the guard's program is built anew and compared
{ python3 -c 'import cryptography' || /usr/bin/python3 -c 'import cryptography'; } 2>/dev/null || missing+=(python3-cryptography) # of the contract's sample
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "tests need these programs, please install: ${missing[*]}" >&2
  exit 1
fi
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -q >/dev/null
# Debian's packages would start services; the tests start their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
apt-get install -y -q --no-install-recommends "${missing[@]}" >/dev/null
