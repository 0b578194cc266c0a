#!/usr/bin/env bash
# Everything that needs a CUDA device, in one call of less than nine minutes: builds in place, runs the tests marked gpu,
# times the steps and the meta-gradients, looks for bad memory accesses, and profiles the main kernels. Results go to
# $OUT as JSON and logs.
#   benchmarks/gpu.sh            run all of it
#   benchmarks/gpu.sh --dry-run  print the commands
# A part that fails does not stop the next one; the exit status is the number of failed parts.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

PYTHON=${PYTHON:-python3}
OUT=${OUT:-benchmarks/results}
DRY_RUN=no
[ "${1:-}" = "--dry-run" ] && DRY_RUN=yes
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export METAFAST_CUDA=1 METAFAST_REQUIRE_NATIVE=1
mkdir -p "$OUT"
failed=0
summary=""

# part NAME SECONDS COMMAND...: its output is shown and kept in $OUT/NAME.log
part() {
  local name=$1 limit=$2 start=$SECONDS status=0
  shift 2
  echo "== $name (at most ${limit} s): $*"
  [ "$DRY_RUN" = yes ] && return 0
  timeout --kill-after=10 "$limit" "$@" >"$OUT/$name.log" 2>&1 || status=$?
  tail -n 40 "$OUT/$name.log"
  if [ "$status" -ne 0 ]; then failed=$((failed + 1)); fi
  summary="$summary$(printf '%-12s status %-4s %s s' "$name" "$status" $((SECONDS - start)))"$'\n'
}

# Skips are reasons to look at, so they are listed; warnings of another torch are not ours to fail on.
tests() { printf '%s\n' "$PYTHON" -m pytest -q -W default -p no:cacheprovider --continue-on-collection-errors "$@"; }

# One architecture, that of this device: the compile-only tests cover the others.
if [ "$DRY_RUN" = no ]; then
  capability=$("$PYTHON" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())') || exit 1
  export CMAKE_ARGS="${CMAKE_ARGS:-} -DCMAKE_CUDA_ARCHITECTURES=$capability-real"
fi

part build 100 "$PYTHON" setup.py -q build_ext --inplace
part env 20 "$PYTHON" -c 'import json; from metafast import ops; print(json.dumps(ops.backend_report(), indent=1))'

# Several processes, where pytest-xdist is there: compiling the Triton kernels is most of the time.
workers=()
"$PYTHON" -c 'import xdist' 2>/dev/null && workers=(-n 8)
mapfile -t command < <(tests -m gpu "${workers[@]}" tests/ops tests/cuda tests/optim tests/schedule tests/triton)
part tests 130 "${command[@]}"

part throughput 60 "$PYTHON" -m benchmarks.throughput.cuda --sizes tiny billion --rounds 5 \
  --output "$OUT/throughput_cuda.json"

part meta 100 "$PYTHON" -m benchmarks.maml.cuda --rounds 5 --compile-seconds 50 --output "$OUT/maml_cuda.json"

mapfile -t command < <(tests -m gpu tests/cuda/test_device.py \
  -k "adam-torch.bfloat16-torch.float32-3-cuda or sgd-torch.float32-torch.bfloat16-3-cuda")
part memcheck 35 compute-sanitizer --tool memcheck --error-exitcode 9 --target-processes all "${command[@]}"
mapfile -t command < <(tests -m gpu tests/ops -k "device_equals_reference and cuda and float32")
part racecheck 30 compute-sanitizer --tool racecheck --error-exitcode 9 --target-processes all "${command[@]}"

# The inner loops' tiles, which share memory between threads.
mapfile -t command < <(tests -m gpu tests/cuda/test_inner_loop_device.py -k "tiles and vectors and float32")
part innercheck 30 compute-sanitizer --tool racecheck --error-exitcode 9 --target-processes all "${command[@]}"

# The kernels on 25 M elements, after the check's small ones: bytes moved, and the share of the peak.
part ncu 25 ncu --clock-control none --kernel-name 'regex:step_kernel|finish_kernel' --launch-skip 8 --launch-count 6 \
  --metrics gpu__time_duration.sum,dram__bytes_read.sum,dram__bytes_write.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,launch__registers_per_thread,sm__warps_active.avg.pct_of_peak_sustained_active \
  "$PYTHON" -m benchmarks.throughput.cuda --rounds 1 --sizes one --only '^metafast AdamW$'

printf '%s' "$summary" | tee "$OUT/gpu_summary.txt"
[ "$failed" -eq 0 ] || echo "$failed parts failed; their logs are in $OUT"
exit "$failed"
