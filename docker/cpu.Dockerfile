# Samples images from exported models on a CPU: OpenVINO, no torch.
#
#   docker build -f docker/cpu.Dockerfile -t accuquant:cpu .
#
# Behind a private package index, give pip's configuration and the certificates as secrets, which stay
# out of the image: --secret id=pip_conf,src=pip.conf --secret id=ca,src=ca.pem (docs/docker.md).
ARG BASE=debian:bookworm-20260824-slim@sha256:88200866dfff7ea7f5cbcb6ec7c8a701889efe6fe859fe64d6990e4b07ea4171

# The interpreter is the one that docker/requirements-cpu.txt was resolved for.
FROM ${BASE} AS python
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3=3.11.* \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*

FROM python AS build
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-pip=23.* \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY docker/requirements-build.txt docker/requirements-cpu.txt docker/
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf --mount=type=secret,id=ca \
    python3 -m venv --without-pip /opt/build \
    && python3 -m venv --without-pip /opt/accuquant \
    && pip --python /opt/build/bin/python install \
        --no-cache-dir --no-deps --require-hashes --requirement docker/requirements-build.txt \
    && pip --python /opt/accuquant/bin/python install \
        --no-cache-dir --no-deps --require-hashes --requirement docker/requirements-cpu.txt
COPY pyproject.toml README.md LICENSE ./
COPY accuquant accuquant
COPY export export
COPY runtime runtime
RUN pip --python /opt/build/bin/python wheel \
        --no-cache-dir --no-index --no-build-isolation --no-deps --wheel-dir /dist . \
    && pip --python /opt/accuquant/bin/python install --no-cache-dir --no-index --no-deps /dist/*.whl
# What sampling on a CPU never loads: OpenVINO's plugins for other devices and its readers of other
# formats, headers, the test suites of dependencies, and the bundled model of `accuquant demo`.
WORKDIR /opt/accuquant/lib/python3.11/site-packages
RUN rm -rf accuquant/data onnx/backend/test openvino/cmake openvino/include openvino/libs/cache.json \
        openvino/libs/libopenvino_intel_gpu_plugin.so openvino/libs/libopenvino_intel_npu_plugin.so \
        openvino/libs/libopenvino_gguf_frontend.so.* openvino/libs/libopenvino_jax_frontend.so.* \
        openvino/libs/libopenvino_paddle_frontend.so.* openvino/libs/libopenvino_pytorch_frontend.so.* \
        openvino/libs/libopenvino_tensorflow_frontend.so.* openvino/libs/libopenvino_tensorflow_lite_frontend.so.* \
    && find numpy sympy -type d -name tests -prune -exec rm -r {} +

FROM python
LABEL org.opencontainers.image.title="AccuQuant, CPU" \
    org.opencontainers.image.description="Samples images from int8 diffusion models with OpenVINO" \
    org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/accuquant /opt/accuquant
# Bytecode comes with the packages; a user that is not in /etc/passwd has no home but /tmp.
ENV PATH=/opt/accuquant/bin:$PATH HOME=/tmp PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /images
# The first user of most Linux machines, so that what is mounted can be written; --user for others.
RUN chown 1000:1000 /images
USER 1000:1000
# Compiles a small QDQ model with OpenVINO and compares what it computes.
RUN ["accuquant", "doctor"]
HEALTHCHECK --interval=5m --timeout=60s --start-period=30s --retries=2 CMD ["accuquant", "doctor"]
# Python as process 1 ignores SIGTERM but turns SIGINT into a clean end: `docker stop` takes no 10 seconds.
STOPSIGNAL SIGINT
ENTRYPOINT ["accuquant"]
CMD ["--help"]
