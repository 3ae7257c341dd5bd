# Helpers shared by the scripts beside this file; sourced, not run. Written for bash 3.2 and newer.
# shellcheck shell=bash

say() { printf '%s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Tells whether "$1" is a Python that pyfrp runs on. Version managers leave launchers on the path
# that fail when they are run, so the program is tried rather than found.
python_is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# Tells whether "$1" can make virtual environments with pip in them.
python_makes_venvs() {
  "$1" -c 'import ensurepip, venv' >/dev/null 2>&1
}

# Prints the path of a suitable Python, or explains what is missing and fails.
#
# A Linux distribution's own comes first, whatever the path says: it is what the services run on,
# and it was built with the compiler's optimisations, which a version manager's often was not.
find_python() {
  local candidate path incomplete=""
  if [ -n "${PYTHON:-}" ]; then
    python_is_new_enough "$PYTHON" || die "PYTHON=$PYTHON is not a Python 3.11 or newer."
    set -- "$PYTHON"
  else
    set -- python3 python3.14 python3.13 python3.12 python3.11 python
    if [ "$(uname -s)" = Linux ]; then set -- /usr/bin/python3 "$@"; fi
  fi
  for candidate in "$@"; do
    path=$(command -v "$candidate" 2>/dev/null) || continue
    python_is_new_enough "$path" || continue
    if python_makes_venvs "$path"; then
      say "$path"
      return 0
    fi
    incomplete=$path
  done
  if [ -n "$incomplete" ]; then
    die "$incomplete cannot make virtual environments: its venv or ensurepip module is missing.
On Debian and Ubuntu:  sudo apt-get install python3-venv   (or python3.11-venv for that version)
Another Python can be named with PYTHON=/path/to/python3."
  fi
  die "no Python 3.11 or newer found.
On Debian 12, Ubuntu 24.04 and newer:  sudo apt-get install python3 python3-venv
On macOS:                              brew install python@3.12
Another Python can be named with PYTHON=/path/to/python3."
}
