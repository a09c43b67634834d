#!/usr/bin/env bash
# Who may include whom: the level table of docs/architecture.md, held against every source file.
#   check_includes.sh [ROOT]     ROOT defaults to the project
set -euo pipefail
cd "${1:-$(dirname "$0")/..}"

folders=(); for folder in slidetile video cli python examples bench tests fuzz; do [ ! -d $folder ] || folders+=($folder); done
sources() { find "${folders[@]}" -type f \( -name '*.h' -o -name '*.cpp' -o -name '*.inl' -o -name '*.cuh' -o -name '*.cu' \) | LC_ALL=C sort; }

awk '
  # 1 to 8 as in the table, 9 for tests, 0 for a file that the table does not know.
  function level(file,   name) {
    if (file !~ /^slidetile\//) {
      if (file ~ /^video\//) return 7
      if (file ~ /^(cli|python|examples|bench)\//) return 8
      return file ~ /^(tests|fuzz)\// ? 9 : 0
    }
    if (file ~ /^slidetile\/(reference|cpu|cuda)\//) return 5
    name = file; sub(/^slidetile\//, "", name); sub(/\.(h|cpp|inl|cuh|cu)$/, "", name)
    if (name == "error") return 1
    if (name ~ /^(tensor|parallel|file|json_guard)$/) return 2
    if (name ~ /^(grid|plan(_[a-z]+)?|safetensors|metrics)$/) return 3
    if (name ~ /^(kernel|device_plan)$/) return 4
    return name ~ /^(window(_[a-z0-9_]+)?|attention)$/ ? 6 : 0
  }
  function folder(file) { sub(/\/[^\/]*$/, "", file); return file }
  function exists(file,   line, found) { found = (getline line < file) >= 0; close(file); return found }
  function complain(what) { printf "%s:%d: %s\n", file, number, what; bad = 1 }

  # An include of ours. Quotes name a file from the root of the project, or one beside the includer; benchmarks use the references of the tests.
  function check_ours(target,   to) {
    if (!exists(target)) target = (file ~ /^bench\// && exists("tests/" target) ? "tests" : folder(file)) "/" target
    if (!exists(target)) { complain("\"" target "\" is no file of the project; system headers go in <>"); return }
    to = level(target)
    if (to == 0) return  # reported where the file itself is read
    if (from == 9) return
    if (from == 8) {
      if (folder(target) == folder(file) || (file ~ /^bench\// && to == 9) || (file ~ /^cli\// && target ~ /^bench\//)) return
      if (folder(target) ~ /^(slidetile|video)$/ && (target in public || to == 7)) return
      complain(target " is not public: it is not in a FILE_SET HEADERS"); return
    }
    if (to == 5 && (from != 5 || folder(target) != folder(file))) { complain(target " belongs to a back end: reach it through the lists in kernel.h"); return }
    if (to > from) complain(target " is of level " to ", this file of level " from)
  }
  function check_system(header) {
    if (header ~ /^(cuda|cublas|cudnn|cooperative_groups|driver_types|device_launch_parameters|vector_types|mma\.h|nv\/|cub\/|cute\/|cutlass\/)/ &&
        file !~ /^(slidetile\/cuda|tests|bench)\//) complain("CUDA headers belong in slidetile/cuda/: " header)
    if (header ~ /^([a-z0-9]*intrin|arm_neon|arm_sve|cpuid)\.h$/ && file !~ /^(slidetile\/cpu|bench)\//) complain("intrinsics belong in slidetile/cpu/: " header)
    if (header ~ /^nlohmann\// && file !~ /\.cpp$/) complain("JSON belongs in .cpp files: " header)
    if (header ~ /^(torch|ATen|c10)\// && file !~ /^(video|tests|bench)\//) complain("torch belongs in video/: " header)
    if (header ~ /^(Python\.h|nanobind\/|pybind11\/)/ && file !~ /^python\//) complain("Python belongs in python/: " header)
    if (header ~ /^(CLI\/|png\.h)/ && file ~ /^slidetile\//) complain("the library needs neither CLI11 nor libpng: " header)
  }

  # First the list of public headers in slidetile/CMakeLists.txt, then the list of sources, each read in turn.
  FILENAME ~ /CMakeLists\.txt$/ {
    n = split($0, word, /[ \t()]+/)
    for (i = 1; i <= n; ++i) {
      if (word[i] == "HEADERS") listing = 1
      if (word[i] == "PRIVATE") listing = 0
      if (listing && word[i] ~ /\.h$/) public["slidetile/" word[i]] = 1
    }
    next
  }
  {
    file = $0; from = level(file); count++; number = 1
    if (from == 0) complain("has no level: add it to tools/check_includes.sh and to the table in docs/architecture.md")
    for (number = 1; (getline line < file) > 0; number++) {
      if (line !~ /^[ \t]*#[ \t]*include[ \t]*["<]/) continue
      quoted = line ~ /include[ \t]*"/
      sub(/^[^"<]*["<]/, "", line); sub(/[">].*$/, "", line)
      if (quoted || line ~ /^(slidetile|video)\//) check_ours(line)
      else check_system(line)
    }
    close(file)
  }
  END {
    if (count == 0) { print "check_includes: no source files found"; exit 1 }
    if (!bad) print "check_includes: " count " files keep to the table"
    exit bad
  }
' slidetile/CMakeLists.txt <(sources)
