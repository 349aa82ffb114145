#!/usr/bin/env bash
# Everything that a GPU can show, in at most 8 minutes; the figures are kept in gpu-figures/.
#     bash benchmarks/on_gpu.sh
# Tests marked `gpu`; calibration of the bundled models on the GPU and on the CPU; an iteration of a network as
# large as Stable Diffusion 1.5's, float32 and TF32, with its seconds and its memory. A part that fails does not
# keep the next from running; the script fails in the end.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
out=gpu-figures
mkdir -p "$out"
failed=0

part() { # NAME SECONDS COMMAND...
  local name=$1 seconds=$2 begun=$SECONDS
  shift 2
  echo "== $name"
  if timeout "$seconds" "$@" > "$out/$name.txt" 2>&1; then state=passed; else state="FAILED ($?)"; failed=1; fi
  tail -n 4 "$out/$name.txt"
  echo "$name: $state, $((SECONDS - begun)) s" | tee -a "$out/summary.txt"
}

: > "$out/summary.txt"
"$python" -c "from accuquant.networks.device import choose_device, describe; print(describe(choose_device('cuda')))" \
  | tee "$out/device.txt" || { echo "No GPU that works: nothing to show."; exit 1; }
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv > "$out/driver.txt" 2>&1 || true

part tests 150 "$python" -m pytest -m gpu -q -p no:cacheprovider
part iteration 120 "$python" benchmarks/device_iteration.py --device cuda --json "$out/iteration.json"
quick=(--steps 25 --num-trajectories 16 --iterations 8 --shared-iterations 8)
for model in fashion-ddpm fashion-text; do
  prompts=()
  [ "$model" = fashion-text ] && prompts=(--prompts accuquant/data/fashion-text/prompts.txt)
  part "calibrate-$model" 90 "$python" -m accuquant calibrate "accuquant/data/$model" --device cuda "${quick[@]}" \
    "${prompts[@]}" -o "$out/$model.safetensors"
done
cat "$out/summary.txt"
exit $failed
