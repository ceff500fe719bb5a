#!/usr/bin/env bash
# Runs the blocks of "The first five minutes" in deploy/README.md as they stand there. Docker,
# systemd, the cluster and Cargo are stood in for, by tests/deploy/first_minutes.py, in a network of
# its own; with FIRST_MINUTES_DOCKER=1 the blocks that take Docker run with the real one instead,
# which builds the image.
set -euo pipefail
cd "$(dirname "$0")/../.."

# shellcheck source=tests/deploy/python.sh
. tests/deploy/python.sh

if [ -n "${FIRST_MINUTES_DOCKER:-}" ]; then
    exec "$PYTHON" tests/deploy/first_minutes.py --docker
fi
cargo build --quiet --locked
as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
"${as_root[@]}" unshare --mount --net "$PYTHON" tests/deploy/first_minutes.py \
    "${CARGO_TARGET_DIR:-target}/debug/ws-proxy"
