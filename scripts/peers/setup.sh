#!/usr/bin/env bash
# Make the environment of the PyTorch peers, which the project's own environment never needs:
#
#     scripts/peers/setup.sh DIRECTORY
#
# PyTorch 2.13.0 under Python 3.11 is a build for CPUs; under 3.12 the same version brings several GB of CUDA, so the
# script insists on 3.11 (PYTHON names the interpreter if `python3.11` is not on the path).
set -euo pipefail

if [ $# -ne 1 ]; then
    echo "usage: $0 DIRECTORY (created; outside the repository is best)" >&2
    exit 2
fi

directory=$1
python=${PYTHON:-python3.11}
if ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
    echo "$0: '$python' is not Python 3.11; name one by PYTHON=/path/to/python3.11" >&2
    exit 2
fi

"$python" -m venv "$directory"
"$directory/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2 safetensors==0.8.0 numpy
"$directory/bin/python" - <<'PYTHON'
import torch, transformers
print(f"torch {torch.__version__}, transformers {transformers.__version__}")
if torch.version.cuda:
    print("warning: this build of PyTorch carries CUDA; timings are of the CPU all the same")
PYTHON
