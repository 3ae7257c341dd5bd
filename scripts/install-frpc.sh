#!/usr/bin/env bash
# Installs the pyfrp client as a systemd service, from this clone. Run it again to upgrade.
set -euo pipefail
ROLE=frpc
SIDE=client
SERVER=""
PORT=""
LOCAL_PORT=""
SAMPLE_SERVER="203.0.113.7"

explain() {
  cat <<'USAGE'
usage: sudo scripts/install-frpc.sh [option...]
       sudo FRP_TOKEN=... scripts/install-frpc.sh --server frp.example.com

Installs the pyfrp client: the program to /opt/pyfrp, its configuration to /etc/frp/frpc.toml (an
existing one is kept) and the service frpc, started now and at boot. The options fill in a new
configuration; FRP_TOKEN in the environment gives the server's token.

  --server ADDR      public address or name of the server
  --port N           its control port (default: 7000)
  --local-port N     port of the LLM API on this machine (default: 4000)
USAGE
}

role_option() {
  case $1 in
    --server | --port | --local-port)
      if [ $# -lt 2 ] || [ -z "$2" ]; then die "$1 needs a value."; fi
      case $1 in
        --server) SERVER=$2 ;;
        *)
          if ! [[ $2 =~ ^[1-9][0-9]{0,4}$ ]] || [ "$2" -gt 65535 ]; then
            die "$1 needs a port number, 1 to 65535, not $2."
          fi
          ;;
      esac
      if [ "$1" = --port ]; then PORT=$2; fi
      if [ "$1" = --local-port ]; then LOCAL_PORT=$2; fi
      TAKEN=2
      ;;
  esac
}

edit_new_config() {
  if [ -n "$SERVER" ]; then set_value "$1" serverAddr "$(toml_string "$SERVER")"; fi
  if [ -n "$PORT" ]; then set_value "$1" serverPort "$PORT"; fi
  if [ -n "$LOCAL_PORT" ]; then set_value "$1" localPort "$LOCAL_PORT"; fi
  if [ -n "${FRP_TOKEN:-}" ]; then set_value "$1" auth.token "$(toml_string "$FRP_TOKEN")"; fi
  FILLED_IN=yes
}

# A client that has only sample values has nothing to connect to.
config_is_ready() {
  local missing=""
  if grep -q "^serverAddr = \"$SAMPLE_SERVER\"" "$CONFIG"; then
    missing="serverAddr"
  fi
  if grep -q "^auth.token = \"$SAMPLE_TOKEN\"" "$CONFIG"; then
    missing="${missing:+$missing and }auth.token"
  fi
  if [ "${FILLED_IN:-no}" = no ] && [ -n "$SERVER$PORT$LOCAL_PORT${FRP_TOKEN:-}" ]; then
    warn "$CONFIG existed and was kept; the values given were not written to it."
  fi
  if [ -n "$missing" ] && [ -z "$ROOT" ]; then
    say "Before it can run, set $missing in $CONFIG, then:"
    say "  $PROGRAM_DIR/bin/pyfrp verify client -c $CONFIG"
    say_how_to_start
    return 1
  fi
}

# shellcheck source=scripts/install-common.sh
. "$(dirname "${BASH_SOURCE[0]}")/install-common.sh"
run_installer "$@"
