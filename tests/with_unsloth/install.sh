#!/usr/bin/env bash
# Makes the venv of the Unsloth tests: Unsloth on the CPU without vLLM, lgrpo-lite from this clone, test tools; again costs seconds.
#   [PYTHON=python3.12] tests/with_unsloth/install.sh [VENV]     VENV defaults to .venv-unsloth beside the Makefile
set -euo pipefail
newest=2026.10.9 # loads models without a GPU
floor=2026.10.7  # the oldest that the extra allows: its source alone, under VENV/floor
root=$(cd "$(dirname "$0")/../.." && pwd)
venv=${1:-$root/.venv-unsloth}
lock=$root/constraints-cpu.txt
tested=$({ echo "$root"; cat "$root/pyproject.toml" "$lock" "$0"; } | sha256sum)

if [ "$(cat "$venv/ready" 2>/dev/null)" = "$tested" ]; then
    exit 0
fi
rm -rf "$venv/ready" "$venv/floor"
"${PYTHON:-python3}" -m venv "$venv"
echo '*' >"$venv/.gitignore"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check install -qq "$@"; }

pip -c "$lock" torch
if ! "$venv/bin/python" -c 'import torch; assert torch.version.cuda is None' 2>/dev/null; then
    echo "error: the package index gave a build of torch for CUDA
  at  $venv
  fix rm -r $venv, then run again with PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu" >&2
    exit 3
fi
pip -c "$lock" -e "$root[train]" pytest hypothesis beartype requests
# Without their dependencies: those are a GPU's, and the newest asks for a certifi that not every index has.
pip --no-deps "unsloth==$newest" "unsloth_zoo==$newest"
pip --no-deps --target "$venv/floor" "unsloth==$floor" "unsloth_zoo==$floor"
echo "$tested" >"$venv/ready"
