#!/usr/bin/env bash
# Resolves setup/*.lock anew: versions and hashes only, for 3.13t (gateway, build) and for any GIL CPython (tools).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash setup/bootstrap.sh
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
.venv/bin/python3.13t -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet uv
# uv takes the newest versions that have a wheel for this interpreter. tokenizers asks for huggingface-hub, which it needs
# only to download models; we never do, and it would bring packages that have no wheels for 3.13t.
echo huggingface-hub >"$folder/excluded"
compile=("$folder/venv/bin/uv" pip compile --quiet --upgrade --generate-hashes --no-header --no-emit-index-url --only-binary :all:)
"${compile[@]}" --python .venv/bin/python3.13t --no-binary grpcio --no-binary tokenizers --excludes "$folder/excluded" \
    --extra gateway --extra granian --extra perf --extra dev pyproject.toml -o setup/gateway.lock
"${compile[@]}" --python .venv/bin/python3.13t setup/build.in -o setup/build.lock
"${compile[@]}" --universal --python-version 3.10 setup/tools.in -o setup/tools.lock
