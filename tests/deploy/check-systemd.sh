#!/usr/bin/env bash
# Checks the systemd unit: that systemd has nothing to say against it, that its sandbox has no new
# holes, that a reload reaches the program, and that the configuration beside it is good. Needs
# systemd-analyze, but no running systemd; and Rust.
set -euo pipefail
cd "$(dirname "$0")/../.."

. tests/deploy/install.sh
command -v systemd-analyze >/dev/null || install_package systemd systemd-analyze

cargo build --quiet --locked
program="$(realpath "${CARGO_TARGET_DIR:-target}")/debug/ws-proxy"
sections=$("$program" check --config deploy/systemd/ws-proxy.toml)
echo "$sections"

fail() { echo "check-systemd.sh: $*" >&2; exit 1; }

# The command finds the admin listener in the file that the program has been started with.
installed=/usr/local/bin/ws-proxy
start=$(sed -n "s|^ExecStart=$installed ||p" deploy/systemd/ws-proxy.service)
reload=$(sed -n "s|^ExecReload=$installed ||p" deploy/systemd/ws-proxy.service)
[ "$reload" = "reload $start" ] ||
    fail "ExecReload has '$reload' where ExecStart's options need 'reload $start'"
# --help keeps it from doing anything.
# shellcheck disable=SC2086
"$program" $reload --help >/dev/null
# A port of any number could not be found.
grep -q '127\.0\.0\.1:[1-9][0-9]* (admin)' <<<"$sections" ||
    fail "deploy/systemd/ws-proxy.toml has no [admin] on 127.0.0.1, which ExecReload asks"
# With notify-reload, systemd would send a signal and not know how it ends.
grep -qx 'Type=notify' deploy/systemd/ws-proxy.service || fail "the unit is not Type=notify"

# The program need not be installed here: a copy of the unit has the one just built in its place.
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
unit="$folder/ws-proxy.service"
sed "s|^\(Exec[A-Za-z]*\)=$installed |\1=$program |" \
    deploy/systemd/ws-proxy.service >"$unit"
# Without the option a warning, as of an unknown key, is no failure.
systemd-analyze verify --recursive-errors=no "$unit"
# What the program is for (the network, and looking up names) or what no option takes away: the
# files of the host, and the clock's device, which ProtectClock= adds. The sum alone is rounded, and
# would hide a small hole.
accepted='PrivateNetwork=
RestrictAddressFamilies=~AF_(INET|INET6)
RestrictAddressFamilies=~AF_UNIX
RestrictAddressFamilies=~AF_NETLINK
IPAddressDeny=
RootDirectory=/RootImage=
DeviceAllow='
review=$(systemd-analyze security --no-pager --offline=yes --threshold=11 "$unit") || weak=yes
# A hole has its weight at the end of its line.
holes=$(awk '$NF ~ /^[0-9]+\.[0-9]$/ { print $2 }' <<<"$review" | grep -vxFe "$accepted" || true)
if [ -n "${weak-}$holes" ]; then
    echo "the sandbox of the unit has become weaker: ${holes:-see systemd-analyze security}" >&2
    exit 1
fi
tail -n 1 <<<"$review"
