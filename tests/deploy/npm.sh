# Sourced by the checks, in the project's folder: install_from_npm NAME installs the packages of
# tests/NAME into target/NAME/, which `environment` names then. Node.js: the one in PATH, else
# Debian's, which is installed.

. tests/deploy/install.sh

install_from_npm() {
    local program
    for program in node npm; do
        command -v "$program" >/dev/null ||
            install_package "${program/node/nodejs}" "Node.js and npm"
    done
    environment="$(realpath -m "${CARGO_TARGET_DIR:-target}")/$1"
    mkdir -p "$environment"
    cmp -s "tests/$1/package-lock.json" "$environment/installed.json" && return
    cp "tests/$1/package.json" "tests/$1/package-lock.json" "$environment"
    npm ci --prefix "$environment" --engine-strict --no-audit --no-fund --loglevel=error >&2
    # Last, so that a run that was cut short is made again.
    cp "tests/$1/package-lock.json" "$environment/installed.json"
}
