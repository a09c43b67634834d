#!/usr/bin/env bash
# What the GPU assembler reports of each kernel: no register spills, and no wgmma that it had to serialise (warnings C75xx).
#   check_ptxas.sh --launch NVCC ARGUMENT...   runs the compiler and keeps its report beside the object (CMake calls it so)
#   check_ptxas.sh BUILD_DIR                   reads the reports; exits 77 where there are none
set -euo pipefail

if [ "$1" = --launch ]; then
  shift
  object=
  for ((i = 1; i < $#; i++)); do
    if [ "${!i}" = -o ]; then next=$((i + 1)); object=${!next}; fi
  done
  [ -n "$object" ] || exec "$@"
  status=0
  "$@" >"$object.ptxas" 2>&1 || status=$?
  if [ $status -ne 0 ]; then cat "$object.ptxas" >&2; rm -f "$object.ptxas"; exit $status; fi
  grep -i 'warning' "$object.ptxas" >&2 || true
  exit 0
fi

mapfile -t reports < <(find "$1" -name '*.ptxas' | LC_ALL=C sort)
[ ${#reports[@]} -gt 0 ] || { echo "check_ptxas: skipped, no CUDA kernel was compiled"; exit 77; }
awk '
  /Compiling entry function/ { split($0, part, "\047"); kernel = part[2]; code = part[4]; kernels++ }
  match($0, /[0-9]+ bytes spill stores, [0-9]+ bytes spill loads/) {
    spill = substr($0, RSTART, RLENGTH)
    if (spill !~ /^0 bytes spill stores, 0 bytes/) { print kernel " (" code "): " spill; bad = 1 }
  }
  /C75[0-9][0-9]/ { print; bad = 1 }
  END { if (!bad) print "check_ptxas: " kernels + 0 " kernels in " ARGC - 1 " files, no spills, no serialised wgmma"; exit bad }
' "${reports[@]}"
