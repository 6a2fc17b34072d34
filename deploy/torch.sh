#!/bin/sh
# Installs PyTorch for the Python given: the build for processors, some 200 MB, unless a GPU is here.
#
#   deploy/torch.sh PYTHON [auto|cpu|default]
#
# "default" installs what the package index has, on Linux with CUDA: gigabytes.
set -eu
python=$1
build=${2:-auto}
index=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
pip="$python -m pip install -qq --disable-pip-version-check -c constraints.txt"

case $build in
auto) if nvidia-smi -L 2>/dev/null | grep -q GPU; then build=default; fi ;;
cpu | default) ;;
*)
    echo "TORCH is $build; set it to auto, cpu or default." >&2
    exit 2
    ;;
esac
if [ "$build" != default ]; then
    answers="import sys, urllib.request as r; r.urlopen(sys.argv[1] + '/torch/', timeout=10)"
    # Without what torch needs: that comes from the usual index, at the versions of constraints.txt.
    if "$python" -c "$answers" "$index" 2>/dev/null && $pip --no-deps --index-url "$index" torch 2>/dev/null; then
        exit 0
    fi
    echo "$index has no PyTorch for this machine or does not answer: the package index's own build is installed."
fi
exec $pip torch
