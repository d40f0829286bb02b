#!/usr/bin/env bash
# What tests drive beside Python: Debian's Chromium (tests/pipelines/dataset/test_gallery_browser.py) and Prometheus with its
# promtool (tests/jobs/test_monitoring.py, tests/integration/test_alerts.py). They are installed where that needs
# nobody's consent, in continuous integration and in containers run as root. Elsewhere it is left to the user, and those
# tests are skipped and say so.
set -euo pipefail

has_any() {
    local name
    for name in "$@"; do
        if command -v "$name" >/dev/null; then return 0; fi
    done
    return 1
}

missing=()
has_any chromium chromium-browser google-chrome || missing+=(chromium)
{ has_any prometheus && has_any promtool; } || missing+=(prometheus)
if [[ ${#missing[@]} == 0 ]]; then exit 0; fi
if [[ $(id -u) == 0 && (-n ${CI:-} || -e /.dockerenv || -n ${container:-}) ]] && has_any apt-get; then
    export DEBIAN_FRONTEND=noninteractive
    if apt-get update --quiet --quiet &&
        apt-get install --quiet --quiet --yes --no-install-recommends "${missing[@]}" >/dev/null; then
        exit 0
    fi
fi
echo "Not here: ${missing[*]}. Tests that need them will be skipped. To run them: apt-get install ${missing[*]}." >&2
