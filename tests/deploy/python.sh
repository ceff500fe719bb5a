# Sourced by the checks, in the project's folder: sets PYTHON to an interpreter that has
# requirements.txt, in an environment of its own under target/.

. tests/deploy/install.sh

environment="${CARGO_TARGET_DIR:-target}/deploy-checks"
if ! cmp -s tests/deploy/requirements.txt "$environment/requirements.txt"; then
    if ! python3 -m venv --clear "$environment"; then
        install_package python3-venv "Python's venv"
        python3 -m venv --clear "$environment"
    fi
    "$environment/bin/pip" install --quiet --disable-pip-version-check \
        -r tests/deploy/requirements.txt
    # Last, so that a run that was cut short is made again.
    cp tests/deploy/requirements.txt "$environment/requirements.txt"
fi
PYTHON="$environment/bin/python"
