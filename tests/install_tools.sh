#!/usr/bin/env bash
# Install the programs that tests use: Chromium (tests/pipelines/dataset/test_gallery_browser.py) and Prometheus with
# promtool (tests/jobs/test_monitoring.py, tests/integration/test_alerts.py). The script installs them in continuous
# integration and in containers that run as root. Elsewhere it prints how to install them; the tests that need a missing
# program are skipped.
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
echo "Not installed: ${missing[*]}. Tests that need them are skipped: run apt-get install ${missing[*]}." >&2
