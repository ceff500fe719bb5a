# Sourced by the checks, in the project's folder: install_from_pypi NAME sets PYTHON to an
# interpreter that has tests/NAME/requirements.txt, in an environment of its own under target/.

. tests/deploy/install.sh

install_from_pypi() {
    local requirements="tests/$1/requirements.txt" place="${CARGO_TARGET_DIR:-target}/$1-checks"
    if ! cmp -s "$requirements" "$place/requirements.txt"; then
        if ! python3 -m venv --clear "$place"; then
            install_package python3-venv "Python's venv"
            python3 -m venv --clear "$place"
        fi
        "$place/bin/pip" install --quiet --disable-pip-version-check -r "$requirements"
        # Last, so that a run that was cut short is made again.
        cp "$requirements" "$place/requirements.txt"
    fi
    # shellcheck disable=SC2034
    PYTHON="$place/bin/python"
}
