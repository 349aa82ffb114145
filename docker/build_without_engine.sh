#!/usr/bin/env bash
# Build the CPU image and run it where there is no Docker engine: as root on Debian, with debootstrap and buildah.
#
#   docker/build_without_engine.sh [OUT]
#
# OUT is an exported model; without it, the bundled one is calibrated (roughly, for minutes) and exported.
# The images that the container samples must equal those of the same command outside it, byte for byte.
# Environment: PYTHON, with AccuQuant in it (.venv/bin/python); WORK, a folder with 3 GB (/tmp/accuquant-image),
# whose base image and model are used again.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-.venv/bin/python}
WORK=${WORK:-/tmp/accuquant-image}
IMAGE=accuquant:cpu
BASE=accuquant-base:bookworm
OPENVINO=/opt/accuquant/lib/python3.11/site-packages/openvino

main() {
  need_tools
  mkdir -p "$WORK"
  SECRETS=$(mktemp -d)
  trap clean EXIT
  local model=${1:-$WORK/model/out}
  [[ $# -gt 0 ]] || export_bundled_model
  store inspect --type image "$BASE" >/dev/null 2>&1 || make_base
  build_image
  report_size
  CONTAINER=$(store from "$IMAGE")
  check_what_is_inside
  check_health
  check_images "$(realpath "$model")"
  say "everything passed"
}

need_tools() {
  local tool
  for tool in debootstrap buildah; do
    command -v "$tool" >/dev/null || fail "$tool is missing. Run: apt-get update && apt-get install debootstrap buildah"
  done
  [[ $(id -u) == 0 ]] || fail "debootstrap needs root. Run: sudo $0"
  "$PYTHON" -c 'import accuquant' || fail "$PYTHON has no AccuQuant. Run: make install, or set PYTHON"
}

# A base like Debian's own slim image: without documents, translations and package lists.
make_base() {
  local root=$WORK/rootfs started=$SECONDS
  say "making a Debian base"
  rm -rf "$root"
  debootstrap --variant=minbase bookworm "$root" >"$WORK/debootstrap.log" || fail "see $WORK/debootstrap.log"
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,info,locale,man}/*
  printf 'FROM scratch\nCOPY . /\nCMD ["bash"]\n' >"$WORK/base.Dockerfile"
  store build --isolation chroot --quiet --file "$WORK/base.Dockerfile" --tag "$BASE" "$root" >/dev/null
  rm -rf "$root"
  say "base: $((SECONDS - started)) s"
}

# --format docker: OCI's own format has no HEALTHCHECK.
build_image() {
  local started=$SECONDS
  say "building $IMAGE (log: $WORK/build.log)"
  write_secrets
  store build --isolation chroot --format docker --file docker/cpu.Dockerfile --tag "$IMAGE" \
    --build-arg "BASE=localhost/$BASE" --secret "id=pip_conf,src=$SECRETS/pip.conf" --secret "id=ca,src=$SECRETS/ca.pem" \
    . >"$WORK/build.log" 2>&1 || fail "see $WORK/build.log"
  say "build: $((SECONDS - started)) s"
}

# The package index and the certificates of this machine, for the time of the build only.
write_secrets() {
  local ca=${PIP_CERT:-${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}} key value
  [[ -f $ca ]] || fail "no certificates at $ca. Set PIP_CERT"
  cp "$ca" "$SECRETS/ca.pem"
  printf '[global]\ncert = /run/secrets/ca\n' >"$SECRETS/pip.conf"
  for key in index-url extra-index-url; do
    value=$("$PYTHON" -m pip config get "global.$key" 2>/dev/null || true)
    # A folder of this machine is not there inside the build.
    value=$(tr ' ' '\n' <<<"$value" | { grep -v '^file:' || true; } | xargs)
    [[ -z $value ]] || printf '%s = %s\n' "$key" "$value" >>"$SECRETS/pip.conf"
  done
}

report_size() {
  local total base archive=$WORK/image.tar
  total=$(size_of "$IMAGE") base=$(size_of "$BASE")
  rm -f "$archive"
  store push --quiet "$IMAGE" "docker-archive:$archive" 2>>"$WORK/build.log"
  say "size: $total MB, of which the base $base MB; compressed $(($(gzip -1 <"$archive" | wc -c) / 1000000)) MB"
  rm -f "$archive"
}

size_of() {
  store images --json "$1" | "$PYTHON" -c '
import json, re, sys
number, unit = re.match(r"([\d.]+) (\w+)", json.load(sys.stdin)[0]["size"]).groups()
print(round(float(number) * {"KB": 1e-3, "MB": 1, "GB": 1e3}[unit]))'
}

check_what_is_inside() {
  expect "runs as user 1000" inside python -c 'import os; assert os.getuid() == 1000'
  expect "has no torch" inside_fails python -c 'import torch'
  expect "has no telemetry" inside_fails python -c 'import openvino_telemetry'
  expect "cannot change its own program" inside_fails touch /opt/accuquant/x
  expect "keeps no secret" inside sh -c 'test ! -e /etc/pip.conf && test ! -e /run/secrets/ca'
  expect "imports everything that needs no torch" inside python -c '
import accuquant.export, accuquant.runtime.sample, accuquant.runtime.save_images, onnx_ir, onnx, openvino, sympy'
}

# Passes as it is, and fails once the plugin that computes is gone: a check that cannot fail would mean nothing.
check_health() {
  local broken health
  mapfile -t health < <(configured Healthcheck | "$PYTHON" -c '
import json, sys
kind, *command = json.load(sys.stdin)["Test"]
assert kind == "CMD", kind
print(*command, sep="\n")')
  expect "is healthy: ${health[*]}" inside "${health[@]}"
  broken=$(store from "$IMAGE")
  store run --isolation chroot --user 0 "$broken" -- rm "$OPENVINO/libs/libopenvino_intel_cpu_plugin.so"
  CONTAINER=$broken expect "is not healthy without OpenVINO's CPU plugin" inside_fails "${health[@]}"
  grep -q 'cannot be run here' "$WORK/last.log" || fail "it failed for another reason: $WORK/last.log"
}

# What `docker run -v MODEL:/model:ro -v IMAGES:/images accuquant:cpu sample ...` does, beside the same outside.
check_images() {
  local model=$1 images=$WORK/images outside=$WORK/images-outside started entrypoint name
  mapfile -t entrypoint < <(configured Entrypoint | "$PYTHON" -c 'import json, sys; print(*json.load(sys.stdin), sep="\n")')
  rm -rf "$images" "$outside"
  install -d -o 1000 -g 1000 "$images"
  MOUNTS=(--volume "$model:/model:ro" --volume "$images:/images")
  started=$(date +%s.%N)
  expect "samples a first image" inside "${entrypoint[@]}" sample /model --output-dir /images --num-images 1
  say "from start to first image: $(since "$started") s"
  started=$(date +%s.%N)
  expect "samples 16 images" inside "${entrypoint[@]}" sample /model --output-dir /images --num-images 16
  say "from start to 16 images: $(since "$started") s"
  "$PYTHON" -m accuquant sample "$model" --output-dir "$outside" --num-images 16 --quiet >/dev/null
  for name in $(cd "$outside" && ls); do
    cmp "$outside/$name" "$images/$name" || fail "$name differs from the one sampled outside"
  done
  say "ok: $(find "$outside" -name '*.png' | wc -l) files equal those sampled outside, byte for byte"
  expect "passes the linter inside" inside "${entrypoint[@]}" check /model/unet/model.onnx
  expect "cannot write the model" inside_fails touch /model/x
  RUN_AS=4321 expect "needs a folder that it can write" inside_fails "${entrypoint[@]}" sample /model --num-images 1
  grep -q '^accuquant: Permission denied' "$WORK/last.log" || fail "no clear line about it in $WORK/last.log"
}

export_bundled_model() {
  local folder=$WORK/model
  [[ ! -e $folder/out ]] || return 0
  say "calibrating the bundled model, roughly"
  mkdir -p "$folder"
  "$PYTHON" -m accuquant calibrate accuquant/data/fashion-ddpm -o "$folder/recipe.safetensors" \
    --steps 10 --num-trajectories 8 --iterations 1 --shared-iterations 1 --quiet
  "$PYTHON" -m accuquant export accuquant/data/fashion-ddpm --recipe "$folder/recipe.safetensors" -o "$folder/out" --quiet
}

store() { buildah --root "$WORK/storage" --runroot "$WORK/run" --storage-driver vfs "$@"; }

# Run a command in the container as the image's user (or RUN_AS), with MOUNTS.
inside() {
  store run --isolation chroot ${RUN_AS:+--user "$RUN_AS"} "${MOUNTS[@]}" "$CONTAINER" -- "$@"
}

inside_fails() { ! inside "$@"; }

# Print a key of the image's configuration as JSON.
configured() {
  store inspect --type image "$IMAGE" | "$PYTHON" -c '
import json, sys
print(json.dumps(json.load(sys.stdin)["Docker"]["config"][sys.argv[1]]))' "$1"
}

expect() {
  local what=$1
  shift
  "$@" >"$WORK/last.log" 2>&1 || { cat "$WORK/last.log" >&2; fail "the image should have passed: $what"; }
  say "ok: $what"
}

since() { "$PYTHON" -c 'import sys, time; print(f"{time.time() - float(sys.argv[1]):.1f}")' "$1"; }
say() { echo "[$(date +%T)] $*"; }
fail() { echo "build_without_engine: $*" >&2; exit 1; }

clean() {
  rm -rf "$SECRETS"
  store rm --all >/dev/null 2>&1 || true
}

MOUNTS=()
main "$@"
