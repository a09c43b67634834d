#!/usr/bin/env bash
# Makes README's clips with the program and the model of this tree, and writes the table of them, between its two marks, with the exact command of each.
#   make_clips.sh [PROGRAM]     PROGRAM defaults to build/release/cli/slidetile
set -euo pipefail
cd "$(dirname "$0")/.."
program=${1:-build/release/cli/slidetile}
folder=docs/images/clips
[ -d data/sprites-model ] || { echo "make_clips: there is no data/sprites-model in this tree" >&2; exit 1; }
grep -q '<!-- clips: begin -->' README.md && grep -q '<!-- clips: end -->' README.md || { echo "make_clips: README.md has no marks for the table" >&2; exit 1; }

# NAME | SEED | OPTIONS | SENTENCE
clips=(
  "star|1|--compare|a large green star moves right on clouds"
  "circle|2||a small red circle moves left"
  "ring|3||a large magenta ring grows"
  "square|4||a small blue square bounces on checks"
)
mkdir -p $folder
table=$(mktemp)
printf '| | |\n|---|---|\n' >"$table"
trap 'rm -f "$table"' EXIT
for clip in "${clips[@]}"; do
  IFS='|' read -r name seed options sentence <<<"$clip"
  command=(generate "$sentence" -o "$folder/$name.gif" --seed "$seed" --scale 2)
  [ -z "$options" ] || command+=("$options")
  "$program" "${command[@]}"
  printf '| ![%s](%s/%s.gif) | `slidetile generate "%s" -o %s.gif --seed %s --scale 2%s` |\n' \
    "$sentence" "$folder" "$name" "$sentence" "$name" "$seed" "${options:+ $options}" >>"$table"
done
awk -v table="$table" '
  /<!-- clips: end -->/ { inside = 0 }
  !inside { print }
  /<!-- clips: begin -->/ { inside = 1; while ((getline line < table) > 0) print line }
' README.md >README.md.new
mv README.md.new README.md
ls -l $folder
