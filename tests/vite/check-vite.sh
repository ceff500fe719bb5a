#!/usr/bin/env bash
# Opens pages of Vite's dev server and of a Socket.IO server through ws-proxy in a headless Chromium.
# The packages come from npm into target/vite/.
set -euo pipefail
cd "$(dirname "$0")/../.."

# shellcheck source=tests/deploy/python.sh
. tests/deploy/python.sh
# shellcheck source=tests/browser/install.sh
. tests/browser/install.sh
# shellcheck source=tests/deploy/npm.sh
. tests/deploy/npm.sh
install_from_npm vite
# Modules are looked up beside the script and above the app, which the check changes.
rm -rf "$environment/app"
cp -r tests/vite/site.mjs tests/vite/app "$environment"

cargo build --quiet --locked
target="$(realpath "${CARGO_TARGET_DIR:-target}")"
PYTHONPATH=tests/browser "$PYTHON" tests/vite/vite.py --chromium "$chromium" \
    --ws-proxy "$target/debug/ws-proxy" --environment "$environment"
