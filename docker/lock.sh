#!/usr/bin/env bash
# Resolve what the images install, with a hash for each file: run it after a change of pyproject.toml or of
# requirements/constraints.txt. Needs uv: pip install uv.
set -euo pipefail
cd "$(dirname "$0")/.."

# lock PYTHON SOURCE OUTPUT [OPTION...]
lock() {
  uv pip compile "$2" --constraint requirements/constraints.txt --python-version "$1" --output-file "$3" \
    --generate-hashes --no-emit-index-url --custom-compile-command docker/lock.sh --quiet "${@:4}"
}

# openvino-telemetry: OpenVINO works without it, and an image should send nothing to anybody.
lock 3.11 pyproject.toml docker/requirements-cpu.txt --no-emit-package openvino-telemetry
# TensorRT comes with the base image. ONNX Runtime runs QDQ graphs in float on a GPU.
lock 3.12 pyproject.toml docker/requirements-gpu.txt --no-emit-package openvino-telemetry --extra gpu \
  --no-emit-package tensorrt --no-emit-package tensorrt-cu13 --no-emit-package tensorrt-cu13-bindings \
  --no-emit-package tensorrt-cu13-libs --no-emit-package onnxruntime-gpu --no-emit-package flatbuffers
lock 3.11 docker/requirements-build.in docker/requirements-build.txt
lock 3.10 docker/requirements-lint.in docker/requirements-lint.txt
