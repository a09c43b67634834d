#!/usr/bin/env bash
# From a bare Debian 12 to the result: installs what is missing, builds, times sliding tile attention against dense attention at
# HunyuanVideo's shape on this machine's processor, and makes a video from a sentence, by both, side by side. Quick the second time.
#   demo.sh [ARGUMENT...]     arguments go to `slidetile bench`
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/setup.sh

install_missing "${build_packages[@]}" python3-venv
install_torch
echo "Building in build/release"
configure release -DSLIDETILE_TESTS=OFF
cmake --build --preset release
program=build/release/cli/slidetile

echo
"$program" plan --canvas 30x48x80 --tile 6x8x8 --window 3x3x3 --png build/window.png
echo "A picture of which tiles one query tile reads: build/window.png"
echo
"$program" bench "$@"

echo
echo "A video from a sentence, by dense and by sliding tile attention from the same noise"
"$program" generate "a large green star moves right on clouds" -o build/demo.mp4 --seed 1 --compare
