#!/usr/bin/env bash
# The rule checks catch what they are there to catch: small trees, each with one mistake.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
failed=0 cases=0

# A tree that keeps every rule, with one file laid over it: tree PATH LINE...
tree() {
  rm -rf "$work/tree"
  mkdir -p "$work"/tree/slidetile/{cpu,cuda} "$work"/tree/{cli,tests}
  cd "$work/tree"
  echo 'target_sources(slidetile PUBLIC FILE_SET HEADERS FILES error.h plan.h kernel.h window.h PRIVATE plan.cpp)' >slidetile/CMakeLists.txt
  for header in error plan kernel window attention cpu/pack cuda/launch; do printf '// A header.\n#pragma once\n' >slidetile/$header.h; done
  printf '#include "slidetile/plan.h"\n' >slidetile/plan.cpp
  if [ $# -gt 0 ]; then printf '%s\n' "${@:2}" >"$1"; fi
  cd - >/dev/null
}
# expect VERDICT WORDS COMMAND...: the command succeeds (good) or fails and says WORDS (bad).
expect() {
  local verdict=$1 words=$2 output status=0
  cases=$((cases + 1))
  output=$("${@:3}" 2>&1) || status=$?
  if [ "$verdict" = good ] && [ $status -eq 0 ]; then return; fi
  if [ "$verdict" = bad ] && [ $status -eq 1 ] && [[ $output == *"$words"* ]]; then return; fi
  echo "case $cases: expected $verdict ($words), got status $status: $output"; failed=1
}
includes() { bash tools/check_includes.sh "$work/tree"; }
text() { bash tools/check_text.sh "$work/tree"; }

tree;                                                                    expect good '' includes
tree slidetile/plan.cpp '#include "slidetile/kernel.h"';                 expect bad 'is of level 4, this file of level 3' includes
tree slidetile/plan.cpp '#include <slidetile/window.h>';                 expect bad 'is of level 6' includes
tree slidetile/plan.cpp '#include "slidetile/cpu/pack.h"';               expect bad 'belongs to a back end' includes
tree slidetile/window.cpp '#include "slidetile/cpu/pack.h"';             expect bad 'belongs to a back end' includes
tree slidetile/window_radial.cpp '#include "slidetile/window.h"';        expect good '' includes
tree slidetile/cpu/kernels.cpp '#include "slidetile/cpu/pack.h"' '#include <immintrin.h>'; expect good '' includes
tree slidetile/cpu/kernels.cpp '#include "slidetile/cuda/launch.h"';     expect bad 'belongs to a back end' includes
tree slidetile/cpu/kernels.cpp '#include "slidetile/window.h"';          expect bad 'is of level 6' includes
tree slidetile/plan.cpp '#include <immintrin.h>';                        expect bad 'intrinsics belong' includes
tree cli/bench.cpp '#include <immintrin.h>';                             expect bad 'intrinsics belong' includes
tree slidetile/plan.cpp '#include <cuda_runtime.h>';                     expect bad 'CUDA headers belong' includes
tree slidetile/window.h '#include <nlohmann/json.hpp>';                  expect bad 'JSON belongs' includes
tree slidetile/plan.cpp '#include <torch/torch.h>';                      expect bad 'torch belongs' includes
tree cli/main.cpp '#include <Python.h>';                                 expect bad 'Python belongs' includes
tree cli/main.cpp '#include "slidetile/window.h"';                       expect good '' includes
tree cli/main.cpp '#include "slidetile/attention.h"';                    expect bad 'is not public' includes
tree cli/main.cpp '#include "slidetile/cpu/pack.h"';                     expect bad 'is not public' includes
tree tests/pack_test.cpp '#include "slidetile/cpu/pack.h"';              expect good '' includes
tree slidetile/plan.cpp '#include "slidetile/nothing.h"';                expect bad 'is no file of the project' includes
tree slidetile/misc.h '#pragma once';                                    expect bad 'has no level' includes

tree;                                                                    expect good '' text
tree slidetile/plan.cpp $'// 6 \xc3\x97 8';                              expect bad 'not ASCII' text
tree slidetile/plan.cpp $'\tint a;';                                     expect bad 'a tab' text
tree slidetile/plan.cpp 'int a; ';                                       expect bad 'blanks at the end' text
tree slidetile/plan.h '#pragma once';                                    expect bad 'the first line is not a comment' text
tree slidetile/plan.h '// A header.';                                    expect bad 'no #pragma once' text
tree; printf 'int a;' >"$work/tree/slidetile/plan.cpp";                  expect bad 'no newline' text

# race KERNEL FIRST SECOND: a log of racecheck with one report.
race() {
  printf '========= %s\n' "Error: Race reported between $2 access at void slidetile::cuda::$1<(int)64>(Params)+0x10" \
    "    and $3 access at void slidetile::cuda::$1<(int)64>(Params)+0x20 [4 hazards]" 'RACECHECK SUMMARY: 1 hazard displayed' >"$work/race.log"
}
races() { bash tools/check_racecheck.sh "$work/race.log"; }
race forward_sm90 Write Read;                                            expect good '' races
race forward_sm90 Read Write;                                            expect good '' races
race forward_sm90 Write Write;                                           expect bad 'forward_sm90 Write Write' races
race forward_sm80 Read Write;                                            expect bad 'forward_sm80 Read Write' races
echo '========= RACECHECK SUMMARY: 0 hazards displayed' >"$work/race.log"; expect good '' races
echo '========= Error: out of memory' >"$work/race.log";                 expect bad 'did not finish' races

# build FLAGS SOURCE: one object as CMake would leave it.
build() {
  rm -rf "$work/build"; mkdir -p "$work/build/CMakeFiles/slidetile.dir"
  local object=CMakeFiles/slidetile.dir/a.cpp.o
  echo "CMAKE_NM:FILEPATH=$(command -v nm)" >"$work/build/CMakeCache.txt"
  echo "$2" >"$work/build/a.cpp"
  echo "\"command\": \"c++ -O2 $1 -o $object -c a.cpp\"," >"$work/build/compile_commands.json"
  (cd "$work/build" && c++ -O2 $1 -o $object -c a.cpp)
}
symbols() { bash tools/check_symbols.sh "$work/build"; }
if command -v c++ >/dev/null && command -v nm >/dev/null; then
  native=-march=native
  build '' 'int f(int a) { return a + 1; }';                                     expect good '' symbols
  build '' '#include <cstdio>
            void f(int a) { std::printf("%d", a); }';                            expect bad 'printf' symbols
  build '' '#include <iostream>
            void f() { std::cout << 1; }';                                       expect bad 'cout' symbols
  build '' '#include <cstdlib>
            char* f() { return std::getenv("A"); }';                             expect bad 'getenv' symbols
  build '' '#include <cstdlib>
            void f() { std::abort(); }';                                         expect bad 'abort' symbols
  build '' 'template <class T> [[gnu::noinline]] T twice(T a) { return a + a; }
            int f(int a) { return twice(a); }';                                  expect good '' symbols
  build $native 'template <class T> [[gnu::noinline]] T twice(T a) { return a + a; }
            int f(int a) { return twice(a); }';                                  expect bad 'weak symbols' symbols
fi

[ $failed -eq 0 ] && echo "rules_test: $cases cases"
exit $failed
