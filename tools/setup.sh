#!/usr/bin/env bash
# Sourced by the other scripts: which Debian packages the project needs, how the missing ones are installed, and a quiet configure.

build_packages=(g++ cmake ninja-build pkg-config libcli11-dev nlohmann-json3-dev zlib1g-dev libpng-dev libavformat-dev libavcodec-dev libswscale-dev libavutil-dev)
test_packages=(doctest-dev clang clang-format-14 libclang-rt-14-dev g++-aarch64-linux-gnu qemu-user python3-dev python3-venv)

# install_missing PACKAGE...: asks nobody and changes nothing where all are there.
install_missing() {
  command -v dpkg-query >/dev/null && command -v apt-get >/dev/null || {
    echo "This is no Debian: the build needs what Debian calls $*"
    return
  }
  local missing=() package as_root=()
  for package in "$@"; do
    [[ " $(dpkg-query --show --showformat='${db:Status-Status} ' "$package" 2>/dev/null)" == *" installed "* ]] || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "Missing: ${missing[*]}. Install them as root, or install sudo." >&2; return 1; }
    as_root=(sudo)
  fi
  echo "Installing from Debian's packages: ${missing[*]}"
  local log; log=$(mktemp)
  {
    "${as_root[@]}" apt-get update -qq &&
      "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
  } >"$log" 2>&1 || { tail -n 20 "$log" >&2; rm -f "$log"; return 1; }
  rm -f "$log"
}

# LibTorch for text to video: PyTorch's pip package in the virtual environment build/venv, where CMake looks for it. Where there is no CUDA
# toolkit, with just the two packages whose libraries its CPU part loads (1.3 GB, a minute or so); else with all of them (5 GB).
install_torch() {
  local python=build/venv/bin/python wheels=(torch==2.11.0)
  [ -x "$python" ] || python3 -m venv build/venv
  ! "$python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)' || return 0
  if [ "$(uname -m)" = x86_64 ] && ! command -v nvcc >/dev/null && [ ! -x /usr/local/cuda/bin/nvcc ]; then
    wheels+=(--no-deps nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85)
  fi
  echo "Installing PyTorch 2.11.0, for its C++ library, into build/venv"
  "$python" -m pip install --quiet --disable-pip-version-check "${wheels[@]}"
}

# configure PRESET OPTION...: prints only where it fails.
configure() {
  local log; log=$(mktemp)
  cmake --preset "$@" >"$log" 2>&1 || { cat "$log" >&2; rm -f "$log"; return 1; }
  rm -f "$log"
}

# zlib for Arm, from Debian's package, unpacked into FOLDER: the system's own packages and lists stay as they are.
arm_zlib() {  # FOLDER
  [ ! -e "$1/lib/libz.a" ] || return 0
  echo "Unpacking zlib for Arm into $1"
  local work; work=$(mktemp -d)
  mkdir -p "$work"/{lists,cache/archives}/partial "$1"/{include,lib}
  local apt=(apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root -o Dir::State::status=/dev/null
    -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache")
  "${apt[@]}" update && (cd "$work" && "${apt[@]}" download zlib1g-dev && dpkg-deb --extract zlib1g-dev_*.deb .)
  cp "$work"/usr/include/z*.h "$1/include/"
  cp "$work"/usr/lib/aarch64-linux-gnu/libz.a "$1/lib/"
  rm -rf "$work"
}
