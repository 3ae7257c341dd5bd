#!/usr/bin/env bash
# Installs the pyfrp server as a systemd service, from this clone. Run it again to upgrade.
set -euo pipefail
ROLE=frps
SIDE=server
LOW_PORTS=no

explain() {
  cat <<'USAGE'
usage: sudo scripts/install-frps.sh [option...]

Installs the pyfrp server: the program to /opt/pyfrp, its configuration to /etc/frp/frps.toml (an
existing one is kept; a new one gets a random token) and the service frps, started now and at boot.

  --low-ports     let the service open ports below 1024 (80, 443)
USAGE
}

role_option() {
  if [ "$1" = --low-ports ]; then
    LOW_PORTS=yes
    TAKEN=1
  fi
}

edit_new_config() {
  local token
  token=$("$PROGRAM_DIR/bin/python" -c 'import secrets; print(secrets.token_hex(32))')
  set_value "$1" auth.token "$(toml_string "$token")"
  NEW_TOKEN=yes
}

extra_unit_files() {
  if [ "$LOW_PORTS" = yes ]; then
    mkdir -p "$UNIT.d"
    cat >"$UNIT.d/low-ports.conf" <<'UNIT'
# Made by install-frps.sh --low-ports.
[Service]
CapabilityBoundingSet=CAP_NET_BIND_SERVICE
AmbientCapabilities=CAP_NET_BIND_SERVICE
# The capability has to be the machine's, not that of a user namespace.
PrivateUsers=no
UNIT
    say "Installed $UNIT.d/low-ports.conf"
  fi
}

config_is_ready() {
  if grep -q "^auth.token = \"$SAMPLE_TOKEN\"" "$CONFIG"; then
    warn "$CONFIG has the sample token, which everybody knows: make your own."
  fi
  if [ "${NEW_TOKEN:-no}" = yes ]; then
    say "A random token was made. The office side needs it:  sudo grep auth.token $CONFIG"
  fi
}

# shellcheck source=scripts/install-common.sh
. "$(dirname "${BASH_SOURCE[0]}")/install-common.sh"
run_installer "$@"
