#!/usr/bin/env bash
# README's C++ example is examples/attention.cpp, which is built and run as a test, every file that README links to exists, and its chart
# and GPU tables are made from the results that are kept.
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
if ! python3 tools/make_chart.py - | cmp -s - docs/images/speed.svg; then
  echo "docs/images/speed.svg: not what tools/make_chart.py draws of bench/results"; bad=1
fi
python3 tools/make_gpu_tables.py --check || bad=1
[ $bad -eq 0 ] && echo "check_readme: the example, the links, the chart and the GPU tables are right"
exit $bad
