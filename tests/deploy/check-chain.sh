#!/usr/bin/env bash
# Runs the chain of compose.yaml on loopback, without containers: a wss:// client, HAProxy, ws-proxy
# and a backend.
set -euo pipefail
cd "$(dirname "$0")/../.."

# shellcheck source=tests/deploy/python.sh
source tests/deploy/python.sh

command -v openssl >/dev/null || install_package openssl openssl

# Compose's own judgement, where there is one; it needs no engine for that.
if docker compose version >/dev/null 2>&1; then
    docker compose -f deploy/compose.yaml config --quiet
    echo "ok    docker compose takes compose.yaml"
fi

cargo build --locked --bin ws-proxy
exec "$PYTHON" tests/deploy/chain.py "${CARGO_TARGET_DIR:-target}/debug/ws-proxy"
