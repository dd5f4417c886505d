#!/usr/bin/env bash
# Makes the Python environment that tests, demo and checks run in, and prints its folder.
# It lives in the user's cache, keyed by the pinned requirements, so that a second clone finds it ready.
set -euo pipefail
cd "$(dirname "$0")/.."
requirements=(operator/requirements.txt trainer-image/requirements.txt tests/requirements.txt)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/trainyard

python=""
for candidate in python3.11 python3 python3.12 python3.13; do
  if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$candidate; break; fi
done
if [ -z "$python" ]; then
  echo "Python 3.11 or newer is needed and none was found; on Debian: apt-get install python3 python3-venv" >&2
  exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing python3-venv" >&2
    { apt-get update && apt-get install -y --no-install-recommends python3-venv; } >&2
  else
    echo "Python's venv module is missing; on Debian: sudo apt-get install python3-venv" >&2
    exit 1
  fi
fi

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
key=$({ echo "$version"; cat "${requirements[@]}"; } | sha256sum | cut -c1-16)
venv=$cache/venv/$key
mkdir -p "$cache/venv"
exec 9>"$cache/venv/$key.lock"
flock 9  # two clones, one installation
if [ ! -e "$venv/.complete" ]; then
  # A folder of wheels beside the checkout saves downloads; pip takes what fits the same pins from it.
  if [ -d ../shared/wheels ]; then export PIP_FIND_LINKS="$PWD/../shared/wheels ${PIP_FIND_LINKS:-}"; fi
  echo "installing the Python environment into $venv (once)" >&2
  rm -rf "$venv"
  "$python" -m venv "$venv" >&2
  args=()
  for file in "${requirements[@]}"; do args+=(-r "$file"); done
  "$venv/bin/pip" install --disable-pip-version-check --progress-bar off "${args[@]}" >&2
  touch "$venv/.complete"
fi
echo "$venv"
