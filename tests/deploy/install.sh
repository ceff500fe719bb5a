# Sourced by the checks: install_package PACKAGE WHAT installs Debian's PACKAGE, or says that WHAT
# is needed and ends.

install_package() {
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$1"; } >&2
    else
        echo "${0##*/}: this needs $2; on Debian: sudo apt-get install $1" >&2
        exit 1
    fi
}
