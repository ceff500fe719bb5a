#!/usr/bin/env bash
# Measures what tunnels cost a container's memory limit. As root, since it makes a cgroup; about two minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "$(id -u)" != 0 ]; then
    echo "making a cgroup needs root: build with cargo build --release, then sudo $0" >&2
    exit 1
fi
program="${CARGO_TARGET_DIR:-target}/release/ws-proxy"
# Whoever has no cargo as root has built it before.
if command -v cargo >/dev/null; then cargo build --release --locked; fi
python3 deploy/checks/memory.py "$program"
