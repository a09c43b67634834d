#!/usr/bin/env bash
# What machine code the library carries: the portable kernels for sm_80 and sm_90 and as PTX, which later GPUs compile for themselves; the
# Hopper kernels for sm_90a alone. And that nothing built here needs libcuda, which is absent where there is no driver.
#   check_device_code.sh BUILD_DIR   exits 77 where there is no CUDA code or no cuobjdump
set -euo pipefail
build=$1
cuobjdump=$(command -v cuobjdump || echo "${CUDA_HOME:-/usr/local/cuda}/bin/cuobjdump")
# PyTorch brings one too.
[ -x "$cuobjdump" ] || cuobjdump=$(find build/venv/lib -name cuobjdump -type f 2>/dev/null | head -n 1)
[ -x "$cuobjdump" ] || { echo "check_device_code: skipped, no cuobjdump"; exit 77; }
mapfile -t objects < <(find "$build" -path '*slidetile.dir*' -name '*.cu.o' | LC_ALL=C sort)
[ ${#objects[@]} -gt 0 ] || { echo "check_device_code: skipped, no CUDA code was compiled"; exit 77; }

bad=0
for object in "${objects[@]}"; do
  name=$(basename "$object" .cu.o)
  found=$({ "$cuobjdump" --list-elf "$object" | sed -n 's/.*\.\(sm_[0-9a-z]*\)\.cubin.*/\1/p'
            "$cuobjdump" --list-ptx "$object" 2>/dev/null | sed -n 's/.*\.sm_\([0-9a-z]*\)\.ptx.*/compute_\1/p'; } | LC_ALL=C sort -u | xargs)
  case $name in
    *_sm90*) expected=sm_90a found=${found/%sm_90/sm_90a} ;;  # which cuobjdump may call sm_90
    *) expected="compute_80 sm_80 sm_90" ;;
  esac
  if [ "$found" != "$expected" ]; then echo "$name: has code for '$found', expected '$expected'"; bad=1; fi
done
for program in "$build/cli/slidetile" "$build/tests/attention_test"; do
  if [ -e "$program" ] && readelf -d "$program" | grep -q 'NEEDED.*libcuda\.so'; then echo "$program: needs libcuda"; bad=1; fi
done
[ $bad -ne 0 ] || echo "check_device_code: ${#objects[@]} objects, PTX for later GPUs, no libcuda"
exit $bad
