# bertgen for jobs over files; docs/install.md has the commands.
#
#     docker build --tag bertgen .
#     docker run --rm --volume "$PWD:/data" bertgen run --model demo --input texts.txt --output german.txt
#
# BASE                  the image of the result. Triton compiles the launcher of each kernel on first use: a GPU needs an
#                       image with a C compiler, python:3.12-bookworm.
# TORCH                 the requirement of torch, as of pip: torch==2.13.0 for one version
# PIP_EXTRA_INDEX_URL   one more index, where pip finds the builds of torch for one kind of device
ARG BASE=python:3.12-slim-bookworm

FROM python:3.12-bookworm AS build
WORKDIR /source
COPY . .
RUN BERTGEN_REQUIRE_EXT=1 pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# hadolint ignore=DL3006
FROM ${BASE}
ARG TORCH=torch
ARG PIP_EXTRA_INDEX_URL=""
# hadolint ignore=DL3013
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir "${TORCH}" /wheels/*.whl \
    && useradd --create-home --uid 1000 bertgen \
    && install --directory --mode 1777 /cache /data

# Models from a hub and compiled kernels, kept in a volume. Any user may write them: docker run --user.
ENV HF_HOME=/cache/huggingface \
    TRITON_CACHE_DIR=/cache/triton
VOLUME ["/cache"]
WORKDIR /data
USER 1000
ENTRYPOINT ["bertgen"]
CMD ["--help"]
