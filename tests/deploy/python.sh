# Sourced by the checks, in the project's folder: sets PYTHON to an interpreter that has
# requirements.txt.

# shellcheck source=tests/deploy/pypi.sh
. tests/deploy/pypi.sh
install_from_pypi deploy
