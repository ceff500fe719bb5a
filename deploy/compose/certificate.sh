#!/usr/bin/env bash
# Puts tls.crt and tls.key for HAProxy into $TO: those in $FROM if there are any, else self-signed
# ones for localhost. $OWNER, if set, becomes their owner. Runs in a container of compose.yaml,
# where there is no project to cd to.
set -euo pipefail
umask 077
rm -f "$TO/tls.crt.new" "$TO/tls.key.new"

if [ -e "$FROM/tls.crt" ] || [ -e "$FROM/tls.key" ]; then
    cat "$FROM/tls.crt" >"$TO/tls.crt.new"
    cat "$FROM/tls.key" >"$TO/tls.key.new"
    echo "certificate.sh: taken from $FROM"
elif [ -e "$TO/tls.key" ] && openssl x509 -in "$TO/tls.crt" -noout -checkend 86400 >/dev/null; then
    echo "certificate.sh: the one that is there is still good"
    exit
else
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365 \
        -subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1 \
        -keyout "$TO/tls.key.new" -out "$TO/tls.crt.new"
    echo "certificate.sh: made a self-signed one for localhost"
fi

chmod 0644 "$TO/tls.crt.new"
if [ -n "${OWNER:-}" ]; then
    chown "$OWNER" "$TO/tls.crt.new" "$TO/tls.key.new"
fi
mv "$TO/tls.crt.new" "$TO/tls.crt"
mv "$TO/tls.key.new" "$TO/tls.key"
