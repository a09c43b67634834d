#!/usr/bin/env bash
# Everything that needs a GPU: builds, runs the GPU tests, compute-sanitizer on small problems, and the benchmark, and writes one JSON file
# stamped with card, driver, commit and a hash of slidetile/cuda. Exits 1 where a check failed, 77 where there is no GPU.
#   gpu_check.sh [--built BUILD_DIR] [OUTDIR]
# --built takes programs that are built already. Without git the commit is read from $COMMIT or from the file COMMIT.
set -euo pipefail
cd "$(dirname "$0")/.."

build=
if [ "${1:-}" = --built ]; then build=$2; shift 2; fi
out=${1:-bench/results/gpu}
mkdir -p "$out"
out=$(cd "$out" && pwd)
if [ -z "$build" ]; then
  build=build/gpu
  cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=Release -DSLIDETILE_CUDA=ON
  cmake --build "$build" -j "$(nproc)"
fi

# cuBLAS, which the benchmark looks for at run time, may lie in a Python package.
cublas=$(ldconfig -p 2>/dev/null | awk '/libcublas\.so/ { print $NF; exit }')
if [ -z "$cublas" ]; then
  cublas=$(find "${CUDA_HOME:-/usr/local/cuda}/" "$(python3 -c 'import site; print(site.getsitepackages()[0])' 2>/dev/null || echo /nowhere)" \
    -name 'libcublas.so.1*' 2>/dev/null | head -n 1 || true)
fi
[ -z "$cublas" ] || export LD_LIBRARY_PATH="$(dirname "$cublas")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"

checks=()
failed=0
run() {  # NAME SECONDS COMMAND...
  local name=$1 limit=$2 status=0 start=$SECONDS
  shift 2
  timeout "$limit" "$@" >"$out/$name.log" 2>&1 || status=$?
  local verdict=passed
  case $status in
    0) ;;
    77) verdict=skipped ;;
    124) verdict="timed out" failed=1 ;;
    *) verdict=failed failed=1 ;;
  esac
  printf '%-24s %s (%d s)\n' "$name" "$verdict" $((SECONDS - start))
  [ "$verdict" = passed ] || tail -n 25 "$out/$name.log"
  checks+=("\"$name\": \"$verdict\"")
}

status=0
"$build"/tests/cuda_test --test-case='a call costs*' >"$out/probe.log" 2>&1 || status=$?
if [ $status -eq 77 ]; then cat "$out/probe.log"; exit 77; fi
run cuda_test 300 "$build"/tests/cuda_test --test-case-exclude='sanitizer*'
tail -n 12 "$out/cuda_test.log"
run lost_device 60 "$build"/tests/cuda_test --no-skip --test-case='a lost device*'
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck synccheck; do
    run "$tool" 180 compute-sanitizer --error-exitcode 1 --tool "$tool" "$build"/tests/cuda_test --test-case='sanitizer*'
  done
  run racecheck 180 tools/check_racecheck.sh "$out/racecheck_reports.log" "$build"/tests/cuda_test --test-case='sanitizer*'
else
  echo "compute-sanitizer: not found, skipped"
  checks+=('"sanitizer": "skipped"')
fi
run bench 400 "$build"/cli/slidetile bench --device cuda --seconds 1 --json "$out/bench.json"
cat "$out/bench.log"

commit=$(git rev-parse HEAD 2>/dev/null || cat COMMIT 2>/dev/null || echo "${COMMIT:-unknown}")
hash=$(find slidetile/cuda -type f | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -c 1-16)
card=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1)
driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1)
{
  printf '{"card": "%s", "driver": "%s", "commit": "%s", "cuda_sources": "%s", "date": "%s",\n "checks": {' "$card" "$driver" "$commit" "$hash" \
    "$(date -u +%F)"
  (IFS=,; printf '%s' "${checks[*]}")
  printf '},\n "bench": '
  cat "$out/bench.json" 2>/dev/null || printf 'null\n'
  printf '}\n'
} >"$out/gpu_check.json"
echo "wrote $out/gpu_check.json"
exit $failed
