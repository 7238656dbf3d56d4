#!/bin/bash
# Builds the environment of optimum-executorch, which does not share one with current transformers: ./setup_optimum.sh DIR
set -euo pipefail
[ -x "$1/bin/python" ] || python3 -m venv "$1"
"$1/bin/pip" install -q optimum-executorch==1.1.0 optimum==2.0.0 transformers==5.0.0rc1 executorch==1.5.1 torchao==0.18.0 torch==2.13.0
