# Sourced by the checks, in the project's folder: sets `chromium` to $CHROMIUM, else to the one in
# PATH, else to Debian's, which is installed.

. tests/deploy/install.sh

chromium=${CHROMIUM:-$(command -v chromium || command -v google-chrome || true)}
if [ -z "$chromium" ]; then
    install_package chromium "a Chromium (CHROMIUM names one)"
    chromium=$(command -v chromium)
fi
