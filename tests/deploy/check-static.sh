#!/usr/bin/env bash
# Builds the static binary, and proves that it needs nothing else: it runs alone in an empty root,
# as in the image.
#
# Takes the rights of root for the namespaces that stand in for a container; all else is done as
# you.
set -euo pipefail
cd "$(dirname "$0")/../.."

fail() { echo "check-static.sh: $*" >&2; exit 1; }

# Names the target even though it is this machine's own: only then are build scripts and macros left
# out of RUSTFLAGS.
target=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS="-C target-feature=+crt-static" \
    cargo build --release --locked --bin ws-proxy --target "$target"
binary="${CARGO_TARGET_DIR:-target}/$target/release/ws-proxy"

headers=$(LC_ALL=C readelf --wide --program-headers --dynamic "$binary")
grep -q "Entry point" <<<"$headers" || fail "readelf says nothing of $binary"
if grep -E "INTERP|NEEDED" <<<"$headers"; then
    fail "$binary is not static: it asks for what is named above"
fi

most=$((14 * 256 * 1024))
size=$(stat --format %s "$binary")
[ "$size" -le "$most" ] || fail "$binary has $size bytes, and may have $most"
echo "static, $size bytes"

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
grep -qx "ARG VERSION=$version" deploy/Dockerfile ||
    fail "deploy/Dockerfile does not have ARG VERSION=$version"

. tests/deploy/python.sh
as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
"${as_root[@]}" unshare --mount --net "$PYTHON" tests/deploy/static.py "$binary"
