#!/usr/bin/env bash
# Measures what tunnels cost a container's memory limit, with the kernel's share. As root, since it
# makes a cgroup; about two minutes. 8 to 9 KiB for an idle tunnel on Linux 6.12, which charges
# accepted sockets too; 6 KiB on 6.1.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [ "$(id -u)" != 0 ]; then
    echo "making a cgroup needs root: build with cargo build --release, then sudo $0" >&2
    exit 1
fi
program="${CARGO_TARGET_DIR:-target}/release/ws-proxy"
# Whoever has no cargo as root has built it before.
if command -v cargo >/dev/null; then cargo build --release --locked; fi
python3 tests/deploy/memory.py "$program"
