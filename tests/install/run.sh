#!/usr/bin/env bash
# Installs a build into an empty folder, looks at what lies there, and builds all headers and the examples against it.
#   run.sh BUILD_DIR CMAKE CXX
set -euo pipefail
build=$1 cmake=$2 cxx=$3
source=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
fail() { echo "install: $*" >&2; exit 1; }

"$cmake" --install "$build" --prefix "$work/prefix" >"$work/log" || { cat "$work/log"; fail "cmake --install failed"; }

# The public headers are those listed beside HEADERS in slidetile/CMakeLists.txt, and no others.
(cd "$work/prefix/include" && find . -name '*.h' | LC_ALL=C sort) >"$work/installed"
tr -s ' \t()' '\n' <"$source/slidetile/CMakeLists.txt" | awk '$0 == "HEADERS" { on = 1 } $0 == "PRIVATE" { on = 0 } on && /\.h$/ { print "./slidetile/" $0 }' |
  LC_ALL=C sort >"$work/listed"
diff "$work/installed" "$work/listed" || fail "the installed headers (<) are not the public ones (>)"
! grep -rlF "$source" "$work/prefix/lib/"*/cmake "$work/prefix/lib/cmake" 2>/dev/null || fail "the package names the source tree"

sed 's|^\./\(.*\)$|#include <\1>|' "$work/installed" >"$work/headers.cpp"
mkdir "$work/headers" && cp "$source/tests/install/CMakeLists.txt" "$work/headers.cpp" "$work/headers/"
for project in "$work/headers" "$source/examples"; do
  build=$work/build/$(basename "$project")
  "$cmake" -S "$project" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_COMPILER="$cxx" -DCMAKE_PREFIX_PATH="$work/prefix" \
    >"$work/log" 2>&1 || { cat "$work/log"; fail "find_package(slidetile) failed for $project"; }
  "$cmake" --build "$build" >"$work/log" 2>&1 || { cat "$work/log"; fail "$project does not build"; }
done
"$work/build/examples/example_attention"

program=$work/prefix/bin/slidetile
if [ -x "$program" ]; then "$program" --help >/dev/null || fail "the installed program does not run"; fi
echo "install: $(wc -l <"$work/installed") headers; the examples build and run"
