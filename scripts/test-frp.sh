#!/usr/bin/env bash
# Five checks of an installation: both services, the control port, the HTTP port, the LLM API.
# Exit code: how many failed. Needs curl.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

explain() {
  cat <<'USAGE'
usage: scripts/test-frp.sh [server|client|both]

Checks, and says OK or FAIL with the reason:
  1 the service frps    2 the service frpc    3 the control port
  4 the HTTP port       5 the LLM API through the tunnel (/v1/models)
The word tells which services belong on this machine; without it, those that are installed.
A service that belongs elsewhere is passed over. Run with sudo to let it read /etc/frp.

Environment (default: what /etc/frp/frps.toml or frpc.toml say, else the value given here):
  FRP_SERVER        address of the server (127.0.0.1)
  FRP_CONTROL_PORT  bindPort (7000)
  FRP_HTTP_PORT     vhostHTTPPort (8081)
  LLM_HOST          one of the proxy's customDomains (llm.local)
  LLM_API_KEY       sent as a bearer token when set
  FRP_ETC           where the configuration is (/etc/frp)
USAGE
}

case ${1:-} in
  -h | --help)
    explain
    exit 0
    ;;
  "" | server | client | both) SIDES=${1:-} ;;
  *) die "unknown argument $1; see $(basename "$0") --help" ;;
esac
command -v curl >/dev/null 2>&1 || die "curl is needed (e.g. apt-get install curl)."

ETC=${FRP_ETC:-/etc/frp}

# value FILE KEY: the plain value of a top-level `key = value` line; nothing if it cannot be had.
value() {
  if [ -r "$ETC/$1" ]; then
    sed -nE "s/^$2 *= *\[? *[\"']?([^\"'#,]*[^\"'#, ])[\"']?.*/\1/p" "$ETC/$1" | head -n 1
  fi
}

# first WORD...: the first that is not empty.
first() {
  local word
  for word in "$@"; do
    if [ -n "$word" ]; then
      printf '%s' "$word"
      return 0
    fi
  done
}

SERVER=$(first "${FRP_SERVER:-}" "$(value frpc.toml serverAddr)" 127.0.0.1)
CONTROL=$(first "${FRP_CONTROL_PORT:-}" "$(value frps.toml bindPort)" "$(value frpc.toml serverPort)" 7000)
HTTP=$(first "${FRP_HTTP_PORT:-}" "$(value frps.toml vhostHTTPPort)" 8081)
DOMAIN=$(first "${LLM_HOST:-}" "$(value frpc.toml customDomains)" llm.local)

# An IPv6 address stands in brackets in a URL.
case $SERVER in
  *:*) URL="http://[$SERVER]:$HTTP" ;;
  *) URL="http://$SERVER:$HTTP" ;;
esac

failures=0
ok() { printf 'OK    %s: %s\n' "$1" "$2"; }
fail() {
  printf 'FAIL  %s: %s\n' "$1" "$2"
  failures=$((failures + 1))
}

# Tells whether a service belongs on this machine:  belongs UNIT SIDE
belongs() {
  if [ -n "$SIDES" ]; then
    [ "$SIDES" = both ] || [ "$SIDES" = "$2" ]
  else
    systemctl cat "$1.service" >/dev/null 2>&1
  fi
}

check_service() {
  local unit=$1 side=$2 state
  if ! command -v systemctl >/dev/null 2>&1; then
    fail "service $unit" "there is no systemctl here"
    return 0
  fi
  if ! belongs "$unit" "$side"; then
    printf -- '-     service %s: not on this machine\n' "$unit"
    return 0
  fi
  state=$(systemctl is-active "$unit" 2>/dev/null || true)
  case $state in
    active) ok "service $unit" "active" ;;
    activating) fail "service $unit" "still starting: see journalctl -u $unit -n 20" ;;
    *) fail "service $unit" "${state:-unknown}: see journalctl -u $unit -n 20" ;;
  esac
}

check_control_port() {
  # A login would need the token; that something accepts is what a firewall or router decides.
  # shellcheck disable=SC2016  # the inner bash expands them
  if timeout 5 bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$SERVER" "$CONTROL" 2>/dev/null; then
    ok "control port" "$SERVER:$CONTROL accepts connections"
  else
    fail "control port" "nothing accepts at $SERVER:$CONTROL (server down, firewall, or the router does not forward it)"
  fi
}

# http_status PATH HOST: the status of a GET, 000 if there was no answer.
http_status() {
  {
    printf 'header = "Host: %s"\n' "$2"
    if [ -n "${LLM_API_KEY:-}" ]; then
      printf 'header = "Authorization: Bearer %s"\n' "${LLM_API_KEY//\"/\\\"}"
    fi
  } | curl --silent --noproxy '*' --max-time 15 --config - --output "$body" \
    --write-out '%{http_code}' "$URL$1" || true
}

check_http_port() {
  local status
  status=$(LLM_API_KEY="" http_status / pyfrp-check.invalid)
  if [ "$status" = 000 ]; then
    fail "HTTP port" "no HTTP answer from $SERVER:$HTTP (vhostHTTPPort not set, firewall, or the router does not forward it)"
  else
    ok "HTTP port" "$SERVER:$HTTP answers (HTTP $status for an unknown host)"
  fi
}

check_llm_api() {
  local status
  status=$(http_status /v1/models "$DOMAIN")
  case $status in
    200)
      if grep -q '"data"' "$body"; then
        ok "LLM API" "http://$DOMAIN/v1/models lists its models"
      else
        fail "LLM API" "HTTP 200, but not a list of models: $(head -c 120 "$body" | tr '\n' ' ')"
      fi
      ;;
    000) fail "LLM API" "no answer from $SERVER:$HTTP within 15 s" ;;
    401 | 403) fail "LLM API" "HTTP $status: it wants a key (set LLM_API_KEY)" ;;
    404) fail "LLM API" "HTTP 404: no proxy for the host $DOMAIN (client not logged in, or other customDomains)" ;;
    502) fail "LLM API" "HTTP 502: the client is there, but nothing answers at its localPort" ;;
    503) fail "LLM API" "HTTP 503: the client of $DOMAIN is away" ;;
    504) fail "LLM API" "HTTP 504: no answer within vhostHTTPTimeout" ;;
    *) fail "LLM API" "HTTP $status: $(head -c 120 "$body" | tr '\n' ' ')" ;;
  esac
}

body=$(mktemp)
trap 'rm -f "$body"' EXIT
check_service frps server
check_service frpc client
check_control_port
check_http_port
check_llm_api
if [ "$failures" = 0 ]; then say "All is well."; else say "$failures failed."; fi
exit "$failures"
