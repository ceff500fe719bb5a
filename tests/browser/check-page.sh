#!/usr/bin/env bash
# Uses the page of the admin listener in a headless Chromium, and writes pictures of it into
# target/browser/.
set -euo pipefail
cd "$(dirname "$0")/../.."

# The DevTools protocol is JSON over a WebSocket, so that the packages of the other checks do.
# shellcheck source=tests/deploy/python.sh
. tests/deploy/python.sh

# shellcheck source=tests/browser/install.sh
. tests/browser/install.sh

cargo build --quiet --locked
target="${CARGO_TARGET_DIR:-target}"
"$PYTHON" tests/browser/page.py --chromium "$chromium" --ws-proxy "$target/debug/ws-proxy" \
    --pictures "$target/browser"
