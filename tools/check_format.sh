#!/usr/bin/env bash
# C++ and CUDA sources are as clang-format 14 lays them out (other versions differ in places: then this is skipped, exit 77).
#   check_format.sh [--fix]
set -euo pipefail
cd "$(dirname "$0")/.."
format=$(command -v clang-format-14 || command -v clang-format || true)
[ -n "$format" ] && "$format" --version | grep -q 'version 14\.' || { echo "check_format: skipped, no clang-format 14 (Debian package clang-format-14)"; exit 77; }

folders=(); for folder in slidetile video cli python examples bench tests fuzz; do [ ! -d $folder ] || folders+=($folder); done
mapfile -t sources < <(find "${folders[@]}" -type f \( -name '*.h' -o -name '*.cpp' -o -name '*.inl' -o -name '*.cuh' -o -name '*.cu' \) | LC_ALL=C sort)
if [ "${1:-}" = --fix ]; then exec "$format" -i "${sources[@]}"; fi
bad=()
for file in "${sources[@]}"; do "$format" "$file" | cmp -s - "$file" || bad+=("$file"); done
[ ${#bad[@]} -eq 0 ] && { echo "check_format: ${#sources[@]} files"; exit 0; }
printf '%s: not formatted\n' "${bad[@]}"
echo "run: bash tools/check_format.sh --fix"
exit 1
