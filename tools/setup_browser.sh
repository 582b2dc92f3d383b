#!/usr/bin/env bash
# Makes Chromium able to run without a screen, for the tests of the server's page: does nothing where
# it can already, installs Debian's Chromium with apt where it may, else says what to run. Those tests
# are then skipped with that reason: all others need no browser.
#
#   tools/setup_browser.sh
set -euo pipefail

packages=(chromium chromium-driver)

can_browse() {
    command -v chromedriver >/dev/null && command -v chromium >/dev/null || return 1
    timeout 120 chromium --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage \
        --dump-dom 'data:text/html,<p id=x>' 2>/dev/null | grep -q 'id="x"' || return 1
    echo "a browser without a screen works ($(command -v chromium))"
}

if can_browse; then
    exit 0
fi

install="apt-get update && apt-get install -y --no-install-recommends ${packages[*]}"
if [[ $(id -u) -ne 0 ]] || ! command -v apt-get >/dev/null; then
    echo "note: no Chromium with its driver: the tests in a browser are skipped. To run them:" >&2
    echo "    sudo sh -c '$install'" >&2
    echo "(Debian; elsewhere install Chromium and chromedriver), then make again." >&2
    exit 0
fi

echo "installing ${packages[*]} (for the tests of the server's page) ..."
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! DEBIAN_FRONTEND=noninteractive sh -c "$install" >"$log" 2>&1; then
    tail -n 15 "$log" >&2
    echo "note: could not install ${packages[*]}: the tests in a browser are skipped" >&2
    exit 0
fi
if ! can_browse; then
    echo "note: ${packages[*]} are installed, but no page opens: the tests in a browser may fail" >&2
fi
