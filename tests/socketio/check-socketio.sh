#!/usr/bin/env bash
# Brings Socket.IO's and SignalR's own clients through ws-proxy to their servers. The packages come
# from npm into target/socketio/; Node.js: the one in PATH, else Debian's, which is installed.
set -euo pipefail
cd "$(dirname "$0")/../.."

. tests/deploy/install.sh
for program in node npm; do
    command -v "$program" > /dev/null || install_package "${program/node/nodejs}" "Node.js and npm"
done

environment="${CARGO_TARGET_DIR:-$PWD/target}/socketio"
mkdir -p "$environment"
if ! cmp -s tests/socketio/package-lock.json "$environment/installed.json"; then
    cp tests/socketio/package.json tests/socketio/package-lock.json "$environment"
    npm ci --prefix "$environment" --no-audit --no-fund --silent
    # Last, so that a run that was cut short is made again.
    cp tests/socketio/package-lock.json "$environment/installed.json"
fi
# Modules are looked up beside the script.
cp tests/socketio/check.mjs "$environment"

cargo build --quiet --locked
target="$(realpath "${CARGO_TARGET_DIR:-target}")"
cd "$environment"
node check.mjs "$target/debug/ws-proxy"
