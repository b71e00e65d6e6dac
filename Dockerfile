# logit-fusion in two flavours: `--target cpu`, the default, and `--target cuda`.
#
# Runs as any non-root user, with a read-only root file system and a writable /tmp. Configuration goes to
# /etc/logit-fusion/config.yaml; without one, name no --config and the embedded demo models are served.

ARG DEBIAN=bookworm-slim
# The locks hold for this Python.
ARG PYTHON=3.11

FROM docker.io/library/debian:${DEBIAN} AS runtime
ARG PYTHON
# Debian's archive drops old versions, so pins would break the build with every point release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libnuma1 "python${PYTHON}" tini \
    && rm -rf /var/lib/apt/lists/* \
    # For a volume with what shall outlive the container; a new volume takes its owner from here.
    && install --directory --owner 10001 --group 10001 /var/cache/logit-fusion
# All that is written at run time lies under /tmp: what is compiled at the first start, and fetched models. The user's
# name is set because libraries look it up, which fails for an id that /etc/passwd does not list.
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/tmp \
    USER=fusion \
    XDG_CACHE_HOME=/tmp/cache \
    HF_HOME=/tmp/huggingface \
    NUMBA_CACHE_DIR=/tmp/numba \
    VLLM_CACHE_ROOT=/tmp/vllm \
    TORCHINDUCTOR_CACHE_DIR=/tmp/inductor \
    TRITON_CACHE_DIR=/tmp/triton \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /opt/logit-fusion
EXPOSE 8000
STOPSIGNAL SIGTERM
# A large model loads for minutes.
HEALTHCHECK --start-period=15m --interval=10s --timeout=5s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# tini takes the signals from the first moment on, and reaps what a dead engine leaves.
ENTRYPOINT ["tini", "--", "logit-fusion"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]

FROM runtime AS build
ARG PYTHON
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends "python${PYTHON}-venv" \
    && rm -rf /var/lib/apt/lists/* \
    && "python${PYTHON}" -m venv /opt/venv
# Where pip finds packages, when that is not PyPI, is told by a secret: `--secret id=pip,src=pip.conf`.
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_DEPS=1 PIP_ROOT_USER_ACTION=ignore \
    PIP_CONFIG_FILE=/run/secrets/pip

FROM build AS build-cpu
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
COPY requirements/cpu.lock /tmp/lock
# The CPU build of torch is not on PyPI: a local wheel wins, PyTorch's own index comes next.
RUN --mount=type=secret,id=pip \
    grep '^torch==' /tmp/lock > /tmp/torch \
    && { pip install --quiet -r /tmp/torch || pip install --quiet --index-url "${TORCH_CPU_INDEX}" -r /tmp/torch; } \
    && pip install --quiet -r /tmp/lock
COPY . .
# Editable, because the demo models lie beside their package. pip is of no more use after that.
RUN pip install --quiet --no-build-isolation --editable . \
    && python -m compileall -q logit_fusion server fusion_kernels zoo \
    && pip uninstall --quiet --yes pip

FROM build AS build-cuda
# Further packages by name, such as `ray` for more than one machine.
ARG EXTRA_PACKAGES=""
COPY requirements/cuda.lock /tmp/lock
# `==` would also take a CPU build of torch, 2.13.0+cpu, from a folder of wheels that pip is told of; `===` does not.
# The extra packages bring what they need themselves, but may not move what is locked.
RUN --mount=type=secret,id=pip \
    sed -i 's/^torch==/torch===/' /tmp/lock \
    && pip install --quiet -r /tmp/lock \
    && if [ -n "${EXTRA_PACKAGES}" ]; then \
        PIP_NO_DEPS=0 pip install --quiet --constraint /tmp/lock ${EXTRA_PACKAGES}; \
    fi
COPY . .
RUN pip install --quiet --no-build-isolation --editable . \
    && python -m compileall -q logit_fusion server fusion_kernels zoo \
    && pip uninstall --quiet --yes pip

FROM runtime AS cuda
ARG PYTHON
# Triton compiles the part of each kernel that runs on the host when it is first launched, so it needs a C compiler and
# Python's headers. The CUDA libraries come with the wheels, the driver from the NVIDIA container toolkit.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev "libpython${PYTHON}-dev" \
    && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-cuda /opt /opt
USER 10001:10001

FROM runtime AS cpu
# Only torch.compile needs a compiler on CPU: build with COMPILER=g++ to serve without engine.enforce_eager.
ARG COMPILER=""
# hadolint ignore=DL3008
RUN if [ -n "${COMPILER}" ]; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends "${COMPILER}" \
        && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=build-cpu /opt /opt
USER 10001:10001
