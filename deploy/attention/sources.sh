#!/bin/sh
# Lays out the sources of the distribution tracepaper-attention, which `python -m build` then builds.
#
#   deploy/attention/sources.sh FOLDER
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=$1
rm -rf "$folder"
mkdir -p "$folder/tracepaper_attention"
cp "$root"/strategies/attention/*.py "$root/strategies/attention/native.c" \
    "$root/strategies/attention/py.typed" "$folder/tracepaper_attention"
cp "$root/deploy/attention/pyproject.toml" "$root/deploy/attention/README.md" "$root/setup.py" "$root/LICENSE" \
    "$root/constraints.txt" "$folder"
echo "include constraints.txt" >"$folder/MANIFEST.in"
