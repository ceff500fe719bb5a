#!/usr/bin/env bash
# Brings Socket.IO's and SignalR's own clients through ws-proxy to their servers. The packages come
# from npm into target/socketio/.
set -euo pipefail
cd "$(dirname "$0")/../.."

# shellcheck source=tests/deploy/npm.sh
. tests/deploy/npm.sh
install_from_npm socketio
# Modules are looked up beside the script.
cp tests/socketio/check.mjs "$environment"

cargo build --quiet --locked
target="$(realpath "${CARGO_TARGET_DIR:-target}")"
cd "$environment"
node check.mjs "$target/debug/ws-proxy"
