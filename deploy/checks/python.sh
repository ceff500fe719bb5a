# Sourced by the checks, in the project's folder: sets PYTHON to an interpreter that has requirements.txt, in an
# environment of its own under target/.

environment="${CARGO_TARGET_DIR:-target}/deploy-checks"
if ! cmp -s deploy/checks/requirements.txt "$environment/requirements.txt"; then
    if ! python3 -m venv --clear "$environment"; then
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            { apt-get update -qq && apt-get install -y -qq python3-venv; } >&2
            python3 -m venv --clear "$environment"
        else
            echo "the checks need Python's venv; on Debian: sudo apt-get install python3-venv" >&2
            exit 1
        fi
    fi
    "$environment/bin/pip" install --quiet --disable-pip-version-check -r deploy/checks/requirements.txt
    # Last, so that a run that was cut short is made again.
    cp deploy/checks/requirements.txt "$environment/requirements.txt"
fi
PYTHON="$environment/bin/python"
