# What install-frps.sh and install-frpc.sh share; sourced by them, not run.
# Written for bash 3.2 and newer.
#
# The caller sets ROLE (frps or frpc) and SIDE (server or client), defines `explain` for --help,
# and may define `role_option` (an option of its own: takes what is left of the command line,
# returns how many words it took in TAKEN), `edit_new_config` (called with the path of a
# configuration that was just created), `config_is_ready` and `extra_unit_files`.
# shellcheck shell=bash

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"
clone=$(dirname "$here")

# shellcheck disable=SC2034  # the scripts that source this use it
SAMPLE_TOKEN="a-sample-token"
SERVICE_USER="frp"

ROOT="" # everything is written below this; for packagers and tests
START=yes
ACTION=install
PURGE=no

common_usage() {
  cat <<'USAGE'
  --uninstall     stop and remove the service and, with the last one, the program;
                  configuration, state and logs stay
  --purge         with --uninstall: remove configuration, state, logs and the account as well
  --no-start      install everything, start nothing
  --root DIR      install below DIR instead of / (implies --no-start; for packagers and tests)
  -h, --help      this text
PYTHON=/path/to/python3 names the interpreter (3.11 or newer) to build the environment with.
USAGE
}

parse_options() {
  while [ $# -gt 0 ]; do
    TAKEN=0
    if declare -F role_option >/dev/null; then role_option "$@"; fi
    if [ "$TAKEN" -gt 0 ]; then
      shift "$TAKEN"
      continue
    fi
    case $1 in
      --uninstall) ACTION=uninstall ;;
      --purge) PURGE=yes ;;
      --no-start) START=no ;;
      --root)
        if [ $# -lt 2 ] || [ -z "$2" ]; then die "--root needs a directory."; fi
        ROOT=${2%/}
        START=no
        shift
        ;;
      -h | --help)
        explain
        common_usage
        exit 0
        ;;
      *) die "unknown option $1; see $(basename "$0") --help" ;;
    esac
    shift
  done
  if [ "$PURGE" = yes ] && [ "$ACTION" != uninstall ]; then
    die "--purge removes what --uninstall leaves: give both."
  fi
}

set_paths() {
  if [ -n "$ROOT" ]; then
    mkdir -p "$ROOT"
    ROOT=$(cd "$ROOT" && pwd)
  fi
  PROGRAM_DIR="$ROOT/opt/pyfrp"
  CONFIG_DIR="$ROOT/etc/frp"
  CONFIG="$CONFIG_DIR/$ROLE.toml"
  UNIT_DIR="$ROOT/etc/systemd/system"
  UNIT="$UNIT_DIR/$ROLE.service"
  STATE_DIR="$ROOT/var/lib/pyfrp"
  LOG_DIR="$ROOT/var/log/pyfrp"
  case $ROLE in
    frps) OTHER_UNIT="$UNIT_DIR/frpc.service" ;;
    *) OTHER_UNIT="$UNIT_DIR/frps.service" ;;
  esac
}

# Tells whether systemd runs this machine and may be asked.
have_systemd() {
  [ -z "$ROOT" ] && [ -d /run/systemd/system ] && command -v systemctl >/dev/null 2>&1
}

check_platform() {
  [ "$(uname -s)" = Linux ] || die "these scripts set up Linux machines with systemd.
On other systems:  python3 -m venv ~/pyfrp && ~/pyfrp/bin/pip install '$clone'"
  case $(uname -m) in
    x86_64 | amd64 | aarch64 | arm64) ;;
    *) warn "$(uname -m): pip may have to compile parts here, which needs a C and a Rust compiler." ;;
  esac
}

need_root() {
  if [ -z "$ROOT" ] && [ "$(id -u)" != 0 ]; then
    die "this writes to /opt, /etc and systemd: run it with sudo."
  fi
}

# The service runs under its own account, which cannot look into home directories: so the
# interpreter has to be one of the system's, whatever comes first on the caller's path.
system_python() {
  local python real
  python=$(PATH=/usr/local/bin:/usr/bin:/bin find_python)
  real=$(readlink -f "$python")
  case $real in
    /root/* | /home/*)
      if [ -z "$ROOT" ]; then
        die "$python lies in a home directory, where the service may not look.
Install a Python for the whole system (e.g. apt-get install python3 python3-venv)."
      fi
      ;;
  esac
  say "$python"
}

ensure_user() {
  [ -z "$ROOT" ] || return 0
  if ! id "$SERVICE_USER" >/dev/null 2>&1; then
    say "Creating the account $SERVICE_USER"
    useradd --system --user-group --no-create-home --home-dir /var/lib/pyfrp \
      --shell /usr/sbin/nologin "$SERVICE_USER"
  fi
}

# Gives a path to the service's account; a foreign root has no accounts to give to.
give_to_service() {
  [ -n "$ROOT" ] || chown "$SERVICE_USER:$SERVICE_USER" "$@"
}

install_program() {
  local python
  if ! python_is_new_enough "$PROGRAM_DIR/bin/python"; then
    python=$(system_python)
    say "Creating $PROGRAM_DIR with $("$python" --version 2>&1) ($python)"
    mkdir -p "$(dirname "$PROGRAM_DIR")"
    "$python" -m venv --clear "$PROGRAM_DIR"
  fi
  say "Installing pyfrp from $clone"
  # A strict umask of the caller would hide the program from the service's account.
  (
    umask 022
    "$PROGRAM_DIR/bin/python" -m pip install --quiet --disable-pip-version-check \
      --upgrade "$clone"
  ) || die "pip could not install pyfrp; its message is above. Is the package index reachable?"
  say "Installed $("$PROGRAM_DIR/bin/python" -I -c 'import pyfrp.version as v; print("pyfrp", v.__version__)')"
}

install_config() {
  if [ ! -d "$CONFIG_DIR" ]; then
    mkdir -p "$CONFIG_DIR"
    chmod 0755 "$CONFIG_DIR"
  fi
  if [ -e "$CONFIG" ]; then
    say "Keeping $CONFIG"
  else
    # Written beside and renamed: an interrupted run leaves no half configuration, and the
    # secret is never readable by others, not even for a moment.
    local partial
    partial=$(mktemp "$CONFIG_DIR/.$ROLE.XXXXXX")
    cat "$clone/configs/$ROLE.toml" >"$partial"
    if declare -F edit_new_config >/dev/null; then edit_new_config "$partial"; fi
    mv "$partial" "$CONFIG"
    say "Created $CONFIG"
  fi
  chmod 0600 "$CONFIG"
  give_to_service "$CONFIG"
}

# Replaces the value of a key in a configuration:  set_value FILE KEY VALUE-IN-TOML
set_value() {
  local file=$1 key=$2 value=$3
  grep -q "^$key = " "$file" || die "$file has no line for $key"
  # Through the environment: the value may hold any character, and stays out of the process list.
  NEW_LINE="$key = $value" awk -v key="$key" '
    index($0, key " = ") == 1 && !done { print ENVIRON["NEW_LINE"]; done = 1; next } { print }
  ' "$file" >"$file.edited"
  cat "$file.edited" >"$file"
  rm -f "$file.edited"
}

# Prints a value as a TOML string.
toml_string() {
  case $1 in
    *[[:cntrl:]]*) die "a value holds a control character" ;;
  esac
  local text=${1//\\/\\\\}
  printf '"%s"' "${text//\"/\\\"}"
}

install_unit() {
  mkdir -p "$UNIT_DIR"
  install -m 0644 "$clone/systemd/$ROLE.service" "$UNIT"
  # systemd before 254 would complain at each start about the two keys that it does not know.
  if have_systemd && [ "$(systemctl --version | awk 'NR == 1 { print $2 }')" -lt 254 ]; then
    sed -i '/^RestartSteps=/d; /^RestartMaxDelaySec=/d' "$UNIT"
  fi
  say "Installed $UNIT"
  if declare -F extra_unit_files >/dev/null; then extra_unit_files; fi
}

check_config() {
  local said
  if ! said=$("$PROGRAM_DIR/bin/pyfrp" verify "$SIDE" -c "$CONFIG" 2>&1); then
    printf '%s\n' "$said" >&2
    die "$CONFIG is not valid, see above. Nothing was started; correct it and run this again."
  fi
}

# What to do by hand, where the script cannot or must not start the service.
say_how_to_start() {
  if have_systemd; then
    say "Start it with:  systemctl enable --now $ROLE"
  else
    say "Run it with:    $PROGRAM_DIR/bin/pyfrp $SIDE -c $CONFIG"
  fi
}

start_service() {
  if [ "$START" = no ]; then
    say "Not started, as asked."
    say_how_to_start
    return 0
  fi
  if ! have_systemd; then
    say_how_to_start
    die "systemd does not run this machine, so no service was started (--no-start accepts that)."
  fi
  systemctl daemon-reload
  systemctl enable --quiet "$ROLE"
  # The client is "active" once it is logged in, which can take its time: so don't wait here.
  # Each start has an id of its own: an upgrade must not take the old process for the new one.
  local waited=0 state before
  before=$(systemctl show --property InvocationID --value "$ROLE")
  systemctl restart --no-block "$ROLE"
  while [ "$waited" -lt 20 ]; do
    state=$(systemctl is-active "$ROLE" 2>/dev/null || true)
    if [ "$state" = active ] &&
      [ "$(systemctl show --property InvocationID --value "$ROLE")" != "$before" ]; then
      say "$ROLE is running.  Its log:  journalctl -u $ROLE -f"
      return 0
    fi
    sleep 1
    waited=$((waited + 1))
  done
  journalctl -u "$ROLE" -n 15 --no-pager >&2 || true
  die "$ROLE is not running yet (state: $state); the end of its log is above.
It keeps trying. Follow it with:  journalctl -u $ROLE -f"
}

uninstall() {
  if have_systemd && [ -e "$UNIT" ]; then
    systemctl disable --now --quiet "$ROLE" || warn "systemctl could not stop $ROLE"
  fi
  if [ -e "$UNIT" ] || [ -d "$UNIT.d" ]; then
    rm -rf "$UNIT" "$UNIT.d"
    say "Removed $UNIT"
  fi
  if have_systemd; then
    systemctl daemon-reload
    systemctl reset-failed "$ROLE" 2>/dev/null || true # it may never have failed
  fi
  if [ -e "$OTHER_UNIT" ]; then
    say "Keeping $PROGRAM_DIR: $(basename "$OTHER_UNIT") needs it."
  elif [ -f "$PROGRAM_DIR/pyvenv.cfg" ]; then
    rm -rf "$PROGRAM_DIR"
    say "Removed $PROGRAM_DIR"
  fi
  if [ "$PURGE" = no ]; then
    if [ -e "$CONFIG" ]; then say "Kept $CONFIG (--purge removes it)"; fi
    return 0
  fi
  rm -f "$CONFIG"
  say "Removed $CONFIG"
  if [ ! -e "$OTHER_UNIT" ]; then
    rm -rf "$STATE_DIR" "$LOG_DIR"
    rmdir "$CONFIG_DIR" 2>/dev/null || true # other files there are not ours to remove
    if [ -z "$ROOT" ] && id "$SERVICE_USER" >/dev/null 2>&1; then
      userdel "$SERVICE_USER" || warn "the account $SERVICE_USER could not be removed"
    fi
  fi
}

run_installer() {
  parse_options "$@"
  need_root
  set_paths
  if [ "$ACTION" = uninstall ]; then
    uninstall
    return 0
  fi
  [ -n "$ROOT" ] || check_platform
  ensure_user
  install_program
  install_config
  install_unit
  check_config
  if declare -F config_is_ready >/dev/null && ! config_is_ready; then
    return 0
  fi
  start_service
}
