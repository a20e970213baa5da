#!/bin/bash
# Everything that needs a card and is not measured yet, in at most 8 minutes:
#   bash benchmarks/gpu.sh                              # writes docs/gpu/<card>.json and docs/gpu.md
#   bash benchmarks/gpu.sh --device cpu --scale tiny    # shows that it works where there is none
# PYTHON names the interpreter (default: python).
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" benchmarks/gpu.py "$@"
