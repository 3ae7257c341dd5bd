#!/usr/bin/env bash
# Makes or repairs the virtual environment that the Makefile works in, and installs into it.
#   make-venv.sh DIR PIP-ARGUMENT...      e.g.  make-venv.sh .venv --editable '.[dev]'
# PYTHON=/path/to/python3 names the interpreter; otherwise `find_python` does.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/lib.sh
. "$here/lib.sh"

[ $# -ge 2 ] || die "usage: make-venv.sh DIR PIP-ARGUMENT..."
venv=$1
shift

# An environment whose interpreter was removed or upgraded away is beyond use.
if ! { python_is_new_enough "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1; }; then
  python=$(find_python)
  say "Creating $venv with $("$python" --version 2>&1) ($python)"
  rm -rf "$venv"
  "$python" -m venv "$venv"
fi

say "Installing $* into $venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" ||
  die "pip could not install $* into $venv; its message is above. Is the package index reachable?"
