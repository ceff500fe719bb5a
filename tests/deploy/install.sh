# Sourced by the checks: install_package PACKAGE WHAT installs Debian's PACKAGE, or says that WHAT
# is needed and ends.

install_package() {
    local as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo --non-interactive)
    if command -v apt-get >/dev/null && "${as_root[@]}" true 2>/dev/null; then
        {
            "${as_root[@]}" apt-get update -qq
            "${as_root[@]}" apt-get install -y -qq --no-install-recommends "$1"
        } >&2
    else
        echo "${0##*/}: this needs $2; on Debian: sudo apt-get install $1" >&2
        exit 1
    fi
}
