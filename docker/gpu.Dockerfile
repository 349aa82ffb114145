# Builds TensorRT engines from exported models and samples images with them on an NVIDIA GPU; no torch.
#
#   docker build -f docker/gpu.Dockerfile -t accuquant:gpu --build-arg REGISTRY=HOST .
#
# HOST is NVIDIA's container registry, or a mirror of it. The base brings TensorRT 11.2, CUDA 13 and Python 3.12. Another one: --build-arg BASE=...; it needs TensorRT
# 10.12 or later with its Python bindings. Secrets as in cpu.Dockerfile.
# A tag can be moved. To pin the bytes as well: --build-arg DIGEST=@sha256:... with what
# `docker buildx imagetools inspect HOST/nvidia/tensorrt:26.08-py3` says (docs/docker.md).
ARG REGISTRY
ARG DIGEST=
ARG BASE=${REGISTRY}/nvidia/tensorrt:26.08-py3${DIGEST}

FROM ${BASE} AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-pip=24.* \
    && rm -rf /var/lib/apt/lists/*
# Some of NVIDIA's images set constraints for pip, which the lock does not need.
ENV PIP_CONSTRAINT=
WORKDIR /src
COPY docker/requirements-build.txt docker/requirements-gpu.txt docker/
# The environment sees the base's packages, of which it needs tensorrt, and installs its own over them.
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf --mount=type=secret,id=ca \
    /usr/bin/python3 -m venv --without-pip /opt/build \
    && /usr/bin/python3 -m venv --without-pip --system-site-packages /opt/accuquant \
    && /usr/bin/python3 -m pip --python /opt/build/bin/python install \
        --no-cache-dir --no-deps --require-hashes --requirement docker/requirements-build.txt \
    && /usr/bin/python3 -m pip --python /opt/accuquant/bin/python install \
        --no-cache-dir --no-deps --require-hashes --ignore-installed --requirement docker/requirements-gpu.txt
COPY pyproject.toml README.md LICENSE ./
COPY accuquant accuquant
COPY export export
COPY runtime runtime
RUN /usr/bin/python3 -m pip --python /opt/build/bin/python wheel \
        --no-cache-dir --no-index --no-build-isolation --no-deps --wheel-dir /dist . \
    && /usr/bin/python3 -m pip --python /opt/accuquant/bin/python install \
        --no-cache-dir --no-index --no-deps /dist/*.whl
WORKDIR /opt/accuquant/lib/python3.12/site-packages
RUN rm -rf accuquant/data onnx/backend/test openvino/cmake openvino/include openvino/libs/cache.json \
        openvino/libs/libopenvino_intel_gpu_plugin.so openvino/libs/libopenvino_intel_npu_plugin.so \
    && find numpy sympy -type d -name tests -prune -exec rm -r {} +

FROM ${BASE}
LABEL org.opencontainers.image.title="AccuQuant, GPU" \
    org.opencontainers.image.description="Runs int8 diffusion models with TensorRT" \
    org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/accuquant /opt/accuquant
ENV PATH=/opt/accuquant/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /images
RUN chown 1000:1000 /images
USER 1000:1000
# No GPU is needed to build: this stops at a base that has no TensorRT for Python.
RUN ["python", "-c", "import accuquant.runtime, polygraphy, tensorrt"]
# On top of the CPU image's check: TensorRT imports, and the driver answers with a GPU.
HEALTHCHECK --interval=5m --timeout=60s --start-period=30s --retries=2 CMD ["accuquant", "doctor", "--gpu"]
STOPSIGNAL SIGINT
ENTRYPOINT ["accuquant"]
CMD ["--help"]
