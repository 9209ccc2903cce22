#!/usr/bin/env bash
# Makes the venv of the GGUF tests: the CPU stack, llama-cpp-python built from its sources (ten minutes on two cores, kept
# as a wheel in build/wheels), lgrpo-lite from this clone. 1.2 GB; again costs seconds. Needs a C++ compiler.
#   [PYTHON=python3.12] tests/with_gguf/install.sh [VENV]        VENV defaults to .venv-gguf beside the Makefile
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
here=$root/tests/with_gguf
venv=${1:-$root/.venv-gguf}
wheels=$root/build/wheels
tested=$({ echo "$root"; cat "$root/pyproject.toml" "$root/constraints-cpu.txt" "$here"/*.txt; } | sha256sum)

if [ "$(cat "$venv/ready" 2>/dev/null)" = "$tested" ]; then
    exit 0
fi
rm -f "$venv/ready"
"${PYTHON:-python3}" -m venv "$venv"
echo '*' >"$venv/.gitignore"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

mkdir -p "$wheels"
if ! ls "$wheels"/llama_cpp_python-*.whl >/dev/null 2>&1; then
    # the library alone: no programs, no server, no vision
    export CMAKE_ARGS="-DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAVA_BUILD=OFF"
    export CMAKE_BUILD_PARALLEL_LEVEL=${JOBS:-2}
    pip wheel -qq --no-deps --require-hashes -r "$here/llama-cpp.txt" -w "$wheels"
fi
pip install -qq --no-deps -r "$root/constraints-cpu.txt" -r "$here/more.txt"
pip install -qq --no-deps "$wheels"/llama_cpp_python-*.whl
pip install -qq --no-deps -e "$root"
echo "$tested" >"$venv/ready"
