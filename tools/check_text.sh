#!/usr/bin/env bash
# Plain text rules for every source file: ASCII, no tabs, no trailing blanks, a last newline, `#pragma once` in headers, and a first
# line that says what the file is for.
#   check_text.sh [ROOT]     ROOT defaults to the project
set -euo pipefail
cd "${1:-$(dirname "$0")/..}"
bad=0
complain() { echo "$*"; bad=1; }

mapfile -t sources < <(find . \( -name .git -o -name build -o -name .venv -o -name '*.egg-info' -o -path ./.gpu \) -prune -o -type f \
  \( -name '*.h' -o -name '*.cpp' -o -name '*.inl' -o -name '*.cuh' -o -name '*.cu' -o -name '*.py' -o -name '*.sh' -o -name '*.cmake' -o -name CMakeLists.txt \) -print | LC_ALL=C sort)
[ ${#sources[@]} -gt 0 ] || { echo "check_text: no source files found"; exit 1; }

grep_all() { LC_ALL=C grep -nP "$1" "${sources[@]}" /dev/null | cut -c1-160; }
found=$(grep_all '[^\x00-\x7F]' || true);  [ -z "$found" ] || complain "$found"$'\n'"^ not ASCII"
found=$(grep_all '\t' || true);            [ -z "$found" ] || complain "$found"$'\n'"^ a tab"
found=$(grep_all '[ \r]$' || true);        [ -z "$found" ] || complain "$found"$'\n'"^ blanks at the end of the line"
for file in "${sources[@]}"; do
  [ ! -s "$file" ] || [ -z "$(tail -c 1 "$file")" ] || complain "$file: no newline at the end"
  case $file in
    *.h | *.cuh)
      grep -q '^#pragma once$' "$file" || complain "$file: no #pragma once"
      [[ $(head -n 1 "$file") == //* ]] || complain "$file: the first line is not a comment that says what the file is for" ;;
    *.sh) [[ $(head -n 2 "$file" | tail -n 1) == '#'* ]] || complain "$file: the second line is not a comment that says what the script does" ;;
  esac
done
[ $bad -eq 0 ] && echo "check_text: ${#sources[@]} files are plain"
exit $bad
