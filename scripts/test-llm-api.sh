#!/usr/bin/env bash
# Tries an OpenAI-compatible API: models, a chat completion, and a streamed one.
# Exit code: how many of the three failed. Needs curl.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

explain() {
  cat <<'USAGE'
usage: scripts/test-llm-api.sh [URL]

Tries /v1/models, /v1/chat/completions and the same streamed, and says OK or FAIL with the reason.
  URL               default: $LLM_URL or http://127.0.0.1:8081 (the server's vhostHTTPPort);
                    the API itself, without the tunnel, is at e.g. http://127.0.0.1:4000
Environment:
  LLM_HOST          Host header, one of the proxy's customDomains; default: llm.local; "" for none
  LLM_API_KEY       sent as a bearer token when set
  LLM_MODEL         default: the first that /v1/models lists
  LLM_PROMPT        default: a short question
  LLM_MAX_TOKENS    default: 48
  LLM_TIMEOUT       seconds for each answer; default: 120
USAGE
}

case ${1:-} in
  -h | --help)
    explain
    exit 0
    ;;
  -*) die "unknown option $1; see $(basename "$0") --help" ;;
esac
command -v curl >/dev/null 2>&1 || die "curl is needed (e.g. apt-get install curl)."

URL=${1:-${LLM_URL:-http://127.0.0.1:8081}}
URL=${URL%/}
URL=${URL%/v1}
HOST=${LLM_HOST-llm.local}
LIMIT=${LLM_TIMEOUT:-120}
failures=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

ok() { printf 'OK    %s: %s\n' "$1" "$2"; }
fail() {
  printf 'FAIL  %s: %s\n' "$1" "$2"
  failures=$((failures + 1))
}

# call PATH [CURL-OPTION...]: the answer goes to $work/body, the status to $status (000: none).
call() {
  local path=$1
  shift
  # The key goes through a file that only we can read, not through the process list.
  {
    if [ -n "$HOST" ]; then printf 'header = "Host: %s"\n' "$HOST"; fi
    if [ -n "${LLM_API_KEY:-}" ]; then
      printf 'header = "Authorization: Bearer %s"\n' "${LLM_API_KEY//\"/\\\"}"
    fi
  } >"$work/curl"
  : >"$work/body"
  status=$(curl --silent --show-error --noproxy '*' --max-time "$LIMIT" --config "$work/curl" \
    --output "$work/body" --write-out '%{http_code}' "$@" "$URL$path" 2>"$work/error") || true
}

# Why a call failed, in words, from $status and what came.
reason() {
  case $status in
    000) cat "$work/error" ;;
    401 | 403) say "HTTP $status: the API key is missing or wrong (LLM_API_KEY), or httpUser is set" ;;
    404) say "HTTP 404: no proxy for the host ${HOST:-of the URL} (client away, or other customDomains), or no such path or model" ;;
    502) say "HTTP 502: the client is there, but its local service refused or broke off" ;;
    503) say "HTTP 503: the client of this host is away" ;;
    504) say "HTTP 504: no answer within vhostHTTPTimeout" ;;
    *) say "HTTP $status: $(head -c 200 "$work/body" | tr '\n' ' ')" ;;
  esac
}

# json_text KEY: the first string of that key in $work/body, escapes left as they are.
json_text() {
  tr -d '\n' <"$work/body" | grep -oE "\"$1\" *: *\"([^\"\\\\]|\\\\.)*\"" | head -n 1 |
    sed -E 's/^"[^"]*" *: *"(.*)"$/\1/' || true
}

say "API: $URL${HOST:+ (Host: $HOST)}"

call /v1/models
model=${LLM_MODEL:-$(json_text id)}
if [ "$status" != 200 ]; then
  fail "models" "$(reason)"
elif [ -z "$model" ]; then
  fail "models" "the answer names no model: $(head -c 200 "$work/body")"
else
  ok "models" "$(grep -oE '"id" *:' "$work/body" | wc -l | tr -d ' ') listed; using $model"
fi

# The strings are quoted for JSON: backslash and double quote; control characters are dropped.
quoted() { printf '%s' "$1" | tr -d '[:cntrl:]' | sed 's/\\/\\\\/g; s/"/\\"/g'; }
request() {
  printf '{"model": "%s", "max_tokens": %d, "stream": %s, "messages": [{"role": "user", "content": "%s"}]}' \
    "$(quoted "${model:-none}")" "${LLM_MAX_TOKENS:-48}" "$1" \
    "$(quoted "${LLM_PROMPT:-In one sentence: what is a reverse proxy?}")"
}

request false >"$work/request"
call /v1/chat/completions --header 'Content-Type: application/json' --data-binary "@$work/request"
content=$(json_text content)
if [ "$status" != 200 ]; then
  fail "chat completion" "$(reason)"
elif ! grep -q '"choices"' "$work/body"; then
  fail "chat completion" "not a completion: $(head -c 200 "$work/body")"
else
  ok "chat completion" "\"${content:0:120}\""
fi

request true >"$work/request"
call /v1/chat/completions --no-buffer --header 'Content-Type: application/json' \
  --data-binary "@$work/request" --write-out '%{http_code} %{time_starttransfer} %{time_total}'
read -r status first total <<<"${status:-000 0 0}"
events=$(grep -c '^data: {' "$work/body" || true)
if [ "$status" != 200 ]; then
  fail "streamed completion" "$(reason)"
elif [ "$events" = 0 ]; then
  fail "streamed completion" "no events came: $(head -c 200 "$work/body")"
elif ! grep -q '^data: \[DONE\]' "$work/body"; then
  fail "streamed completion" "cut after $events events, without [DONE] ($(cat "$work/error"))"
else
  ok "streamed completion" "$events events in $total s, the first byte after $first s"
fi

exit "$failures"
