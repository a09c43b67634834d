#!/usr/bin/env bash
# What the library's objects may refer to: it never prints, aborts, exits or reads the environment. And an object compiled for an instruction
# set leaves no weak symbol: the linker could take that copy for the whole program, which then dies on a machine without the set.
#   check_symbols.sh BUILD_DIR     an optimised build made by CMake
set -euo pipefail
build=$1
nm=$(sed -n 's/^CMAKE_NM:FILEPATH=//p' "$build/CMakeCache.txt")
bad=0

mapfile -t objects < <(find "$build" -path '*/slidetile.dir/*' -name '*.o' | LC_ALL=C sort)
[ ${#objects[@]} -gt 0 ] || { echo "check_symbols: no objects of the library in $build"; exit 1; }
forbidden='^(abort|exit|_exit|_Exit|quick_exit|raise|kill|getenv|secure_getenv|setenv|putenv|system|popen|perror|puts|putchar|(__)?v?f?printf(_chk)?|(__)?v?dprintf(_chk)?|fputs|fputc|putc|stdin|stdout|stderr|_ZSt4(cout|cerr|clog)|_ZSt5w(cout|cerr|clog)|__assert_fail)$'
for object in "${objects[@]}"; do
  found=$("$nm" --undefined-only --format=posix "$object" | awk '{ print $1 }' | grep -E "$forbidden" | tr '\n' ' ' || true)
  [ -z "$found" ] || { echo "${object#"$build"/}: refers to $found"; bad=1; }
done

# Sources with flags of their own (-mavx2, -march=...) are those of an instruction set.
sets=0
for object in "${objects[@]}"; do
  name=${object##*/slidetile.dir/}
  grep -F -- "-o ${object#"$build"/} " "$build/compile_commands.json" | grep -qE -- ' -m(avx|amx|fma|f16c|arch=|cpu=)' || continue
  sets=$((sets + 1))
  found=$("$nm" --defined-only --format=posix "$object" | awk '$2 ~ /^[VWu]$/ { print $1 }' | c++filt | head -5)
  [ -z "$found" ] || { echo "$name: weak symbols (first 5):"; echo "$found"; bad=1; }
done
[ $bad -eq 0 ] && echo "check_symbols: ${#objects[@]} objects, $sets of them for an instruction set"
exit $bad
