#!/usr/bin/env bash
# Everything that a GPU can show, in at most 8 minutes; the figures are kept in gpu-figures/.
#     bash benchmarks/on_gpu.sh
#     REHEARSAL=1 bash benchmarks/on_gpu.sh    # the same parts on the CPU, tiny: does the script run?
# Tests marked `gpu`; an iteration of a network as large as Stable Diffusion 1.5's in float32, TF32 and bfloat16,
# with its seconds and its memory; calibration of the bundled models; memory of verify, which is not to grow with
# the number of images. A part that fails does not keep the next from running; the script fails in the end.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-.venv/bin/python}
out=${OUT:-gpu-figures}
device=cuda
network=(--model sd15 --size 64)
quick=(--steps 25 --num-trajectories 16 --iterations 8 --shared-iterations 8)
images=(64 256)
slack=1
if [ -n "${REHEARSAL:-}" ]; then
  device=cpu
  network=(--model tiny --size 16 --rounds 1)
  quick=(--steps 2 --num-trajectories 2 --batch-size 1 --iterations 0 --shared-iterations 0 --no-refine --rounding nearest)
  images=(2 4)
  slack=5 # on a crowded processor
fi
mkdir -p "$out"
failed=0

part() { # NAME SECONDS COMMAND...
  local name=$1 seconds=$2 begun=$SECONDS state=passed
  shift 2
  echo "== $name"
  timeout $((seconds * slack)) "$@" > "$out/$name.txt" 2>&1 || { state="FAILED ($?)"; failed=1; }
  tail -n 6 "$out/$name.txt"
  echo "$name: $state, $((SECONDS - begun)) s" | tee -a "$out/summary.txt"
}

: > "$out/summary.txt"
"$python" -c "import sys; from accuquant.networks.device import choose_device, describe
print(describe(choose_device(sys.argv[1])))" "$device" 2>&1 | tee "$out/device.txt" \
  || { echo "No GPU that works: nothing to show."; exit 1; }
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv > "$out/driver.txt" 2>&1 || true

part tests 140 "$python" -m pytest -m gpu -q -p no:cacheprovider
part iteration 110 "$python" benchmarks/device_iteration.py --device "$device" "${network[@]}" --json "$out/iteration.json"
part calibrate-fashion-ddpm 70 "$python" -m accuquant calibrate accuquant/data/fashion-ddpm --device "$device" \
  "${quick[@]}" -o "$out/fashion-ddpm.safetensors"
part calibrate-fashion-text 80 "$python" -m accuquant calibrate accuquant/data/fashion-text --device "$device" \
  "${quick[@]}" --prompts accuquant/data/fashion-text/prompts.txt -o "$out/fashion-text.safetensors"
part verify-memory 80 "$python" benchmarks/verify_memory.py --device "$device" --steps 2 --images "${images[@]}" \
  --json "$out/verify-memory.json"
cat "$out/summary.txt"
exit $failed
