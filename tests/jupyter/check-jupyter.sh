#!/usr/bin/env bash
# Runs code in a kernel of Jupyter through ws-proxy. The packages come from PyPI into
# target/jupyter-checks/.
set -euo pipefail
cd "$(dirname "$0")/../.."

# shellcheck source=tests/deploy/pypi.sh
. tests/deploy/pypi.sh
install_from_pypi jupyter

cargo build --quiet --locked
"$PYTHON" tests/jupyter/kernel.py "${CARGO_TARGET_DIR:-target}/debug/ws-proxy"
