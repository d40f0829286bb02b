#!/usr/bin/env bash
# The browser that tests/pipelines/test_gallery_browser.py drives: Debian's, installed where that needs nobody's
# consent, in continuous integration and in containers run as root. Elsewhere it is left to the user, and those tests
# are skipped and say so.
set -euo pipefail
for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null; then exit 0; fi
done
if [[ $(id -u) == 0 && (-n ${CI:-} || -e /.dockerenv || -n ${container:-}) ]] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    if apt-get update --quiet --quiet && apt-get install --quiet --quiet --yes --no-install-recommends chromium >/dev/null; then
        exit 0
    fi
fi
echo "No Chromium here: the gallery's browser tests will be skipped. To run them: apt-get install chromium." >&2
