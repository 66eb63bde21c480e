# asyrp and Ray for pods, as docs/scheduling.md uses them.
#   docker build -t registry/asyrp:1 .
#   docker build -t registry/asyrp:1-cpu --build-arg TORCH_INDEX=URL .    # of PyTorch's wheels for CPUs: a small image
# The Ray in it has the version of constraints.txt, and so must every other node of its cluster.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS build
# Where torch comes from. By default the package index, whose torch has CUDA and works without a GPU too.
ARG TORCH_INDEX=
ARG EXTRAS=cluster,s3
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/asyrp
ENV PATH=/opt/asyrp/bin:${PATH}
WORKDIR /src
COPY constraints.txt pyproject.toml ./
RUN pip install --constraint constraints.txt ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} torch torchvision
# All else that is not asyrp, which changes more often than what it needs.
RUN touch README.md && pip install --constraint constraints.txt ".[${EXTRAS}]"
COPY README.md ./
COPY asyrp asyrp
COPY pipeline pipeline
COPY jobs jobs
RUN pip install --no-deps --force-reinstall .

FROM python:${PYTHON}-slim-bookworm
# KubeRay looks after its pods with wget.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home asyrp
COPY --from=build /opt/asyrp /opt/asyrp
ENV PATH=/opt/asyrp/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
WORKDIR /home/asyrp
ENTRYPOINT ["asyrp"]
CMD ["--help"]
