#!/usr/bin/env bash
# First contact with a GPU: tests, the recipe, what fits, the benches; nine minutes, one JSON. Needs no network.
#   [PYTHON=python3] [KIT=build/gpu-kit] bench/first_contact.sh [--dry-run] [--out FILE]
# PYTHON has torch and transformers. What it lacks comes out of KIT (`make gpu-kit`, on a machine with a network), into a
# folder that goes when this ends. The kit is for CPython 3.12 on x86-64; any other Python has to have everything itself.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
kit=${KIT:-$root/build/gpu-kit}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT

if compgen -G "$kit/*.whl" >/dev/null && "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))'; then
    "$python" -m pip install -q --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir --upgrade \
        --target "$site" "$kit"/*.whl
fi
# No plugin of pytest that happens to be there: the kit's pytest may be newer than it.
PYTHONPATH=$site:$root PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 "$python" "$root/bench/first_contact.py" "$@"
