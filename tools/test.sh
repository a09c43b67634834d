#!/usr/bin/env bash
# Builds and tests everything that a machine without a GPU can test, from a bare Debian 12: installs what is missing, then runs the
# stages below, or those that are named. The release stage comes last: its tests include the project's rules and an install.
#   test.sh [asan] [tsan] [aarch64] [fuzz] [python] [release]
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/setup.sh

stages=("$@")
[ $# -gt 0 ] || stages=(asan tsan aarch64 fuzz python release)
jobs=$(nproc)
say() { printf '\n== %s (%d:%02d)\n' "$*" $((SECONDS / 60)) $((SECONDS % 60)); }

build() {  # PRESET [OPTION...]
  configure "$1" -DSLIDETILE_WERROR=ON -DSLIDETILE_TESTS=ON "${@:2}"
  cmake --build --preset "$1"
}

asan() {
  say "AddressSanitizer and UndefinedBehaviorSanitizer"
  build asan
  ctest --preset asan -j "$jobs"
}

# ThreadSanitizer needs the address layout that kernels used before they randomised more bits of it.
tsan() {
  say "ThreadSanitizer"
  build tsan
  local fixed_layout=()
  if setarch "$(uname -m)" --addr-no-randomize true 2>/dev/null; then fixed_layout=(setarch "$(uname -m)" --addr-no-randomize); fi
  "${fixed_layout[@]}" ctest --preset tsan -j "$jobs"
}

aarch64() {
  if [ "$(uname -m)" = aarch64 ]; then echo "aarch64: skipped, this machine is one"; return; fi
  say "aarch64, cross-compiled and emulated"
  arm_zlib build/aarch64-root
  build aarch64
  ctest --preset aarch64 -j "$jobs"
}

# A short run of each fuzzer; fuzz/CMakeLists.txt says how to run one for longer. Warnings are those of g++.
fuzz() {
  say "libFuzzer on the readers of files"
  build fuzz -DSLIDETILE_WERROR=OFF
  ctest --preset fuzz -j "$jobs"
}

# Installs the package into a virtual environment of its own, with PyTorch (5 GB) and diffusers, and runs its tests.
python() {
  say "the Python package"
  local python=build/venv/bin/python
  [ -x "$python" ] || python3 -m venv build/venv
  "$python" -m pip install --quiet --disable-pip-version-check -r python/requirements-test.txt
  CMAKE_ARGS=-DSLIDETILE_CUDA=OFF "$python" -m pip install --quiet --disable-pip-version-check --no-build-isolation .
  "$python" -m pytest -q python/tests
}

# Where nvcc is, this compiles the CUDA back end, and a rule reads what the assembler says of each kernel. Text to video is built on the
# LibTorch of build/venv, which the stage python fills too.
release() {
  say "release: all tests and the project's rules"
  command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ] || echo "No nvcc: the CUDA back end is left out."
  install_torch
  build release -DSLIDETILE_VIDEO=ON
  ctest --preset release -j "$jobs"
}

install_missing "${build_packages[@]}" "${test_packages[@]}"
for stage in "${stages[@]}"; do
  case $stage in
    asan | tsan | aarch64 | fuzz | python | release) "$stage" ;;
    *) echo "test.sh: no stage is named '$stage', expected asan, tsan, aarch64, fuzz, python or release" >&2; exit 2 ;;
  esac
done
