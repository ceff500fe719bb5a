#!/usr/bin/env bash
# Uses the page of the admin listener in a headless Chromium, and writes pictures of it into
# target/browser/. Chromium: $CHROMIUM, else the one in PATH, else Debian's, which is installed.
set -euo pipefail
cd "$(dirname "$0")/../.."

# The DevTools protocol is JSON over a WebSocket, so that the packages of the other checks do.
# shellcheck source=tests/deploy/python.sh
. tests/deploy/python.sh

chromium=${CHROMIUM:-$(command -v chromium || command -v google-chrome || true)}
if [ -z "$chromium" ]; then
    install_package chromium "a Chromium (CHROMIUM names one)"
    chromium=$(command -v chromium)
fi

cargo build --quiet --locked
target="${CARGO_TARGET_DIR:-target}"
"$PYTHON" tests/browser/page.py --chromium "$chromium" --ws-proxy "$target/debug/ws-proxy" \
    --pictures "$target/browser"
