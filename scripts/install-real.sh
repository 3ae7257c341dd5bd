#!/usr/bin/env bash
# Installs from Debian the programs that `make test-real` drives; does nothing if all are there.
# No service is started: the tests start their own, with files of their own.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

# Each program and the Debian package that has it.
PROGRAMS="ssh:openssh-client sshd:openssh-server rsync:rsync curl:curl nginx:nginx openssl:openssl
iperf3:iperf3 psql:postgresql-client dig:bind9-dnsutils dnsmasq:dnsmasq-base squid:squid"
POLICY=/usr/sbin/policy-rc.d
LIMIT=600 # seconds for apt-get

PATH=$PATH:/usr/sbin:/sbin

# Prints the packages of the programs that are missing.
missing_packages() {
  local pair
  for pair in $PROGRAMS; do
    command -v "${pair%%:*}" >/dev/null 2>&1 || say "${pair##*:}"
  done
  # The server's programs are not on the path.
  compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || say postgresql
}

missing=$(missing_packages | tr '\n' ' ')
[ "$(id -u)" = 0 ] ||
  die "make test-real must be run as root: sshd, nginx and PostgreSQL change to other accounts."
[ -n "$missing" ] || exit 0
command -v apt-get >/dev/null 2>&1 ||
  die "make test-real installs its programs with apt-get, which is not here. Missing: $missing"

say "Installing $missing"
if [ ! -e "$POLICY" ]; then
  # Debian starts the services that it installs, unless this says no.
  trap 'rm -f "$POLICY"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$POLICY"
  chmod 0755 "$POLICY"
fi
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
# shellcheck disable=SC2086  # a list of packages
if ! timeout "$LIMIT" apt-get update >"$log" 2>&1 ||
  ! timeout "$LIMIT" apt-get install -y --no-install-recommends $missing >>"$log" 2>&1; then
  tail -n 20 "$log" >&2
  rm -f "$log"
  die "apt-get could not install $missing; its last words are above. Is the mirror reachable?"
fi
rm -f "$log"
missing=$(missing_packages | tr '\n' ' ')
[ -z "$missing" ] || die "still missing after the installation: $missing"
