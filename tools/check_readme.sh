#!/usr/bin/env bash
# README's C++ example is examples/attention.cpp, which is built and run as a test, and every file that README links to exists.
set -euo pipefail
cd "$(dirname "$0")/.."
bad=0
if ! diff <(awk '/^```cpp$/ { on = 1; next } /^```$/ { on = 0 } on' README.md) <(grep -v '^// ' examples/attention.cpp); then
  echo "README.md: the C++ example differs from examples/attention.cpp (< README, > the file)"; bad=1
fi
for document in README.md CONTRIBUTING.md docs/*.md; do
  while read -r link; do
    [ -e "$(dirname "$document")/$link" ] || { echo "$document: links to $link, which does not exist"; bad=1; }
  done < <(grep -oE '\]\([^)#]+' "$document" | cut -c3- | grep -vE '^[a-z]+:' || true)
done
[ $bad -eq 0 ] && echo "check_readme: the example and the links are right"
exit $bad
