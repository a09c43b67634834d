#!/usr/bin/env bash
# From a bare Debian 12 to the result: installs what is missing, builds, and times sliding tile attention against dense attention at
# HunyuanVideo's shape on this machine's processor. Quick the second time.
#   demo.sh [ARGUMENT...]     arguments go to `slidetile bench`
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/setup.sh

install_missing "${build_packages[@]}"
echo "Building in build/release"
configure release -DSLIDETILE_TESTS=OFF
cmake --build --preset release
program=build/release/cli/slidetile

echo
"$program" plan --canvas 30x48x80 --tile 6x8x8 --window 3x3x3 --png build/window.png
echo "A picture of which tiles one query tile reads: build/window.png"
echo
"$program" bench "$@"
