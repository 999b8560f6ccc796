# skinrepro in a container. CPU: docker build -t skinrepro .
# CUDA: docker build -t skinrepro --build-arg BASE=nvidia/cuda:12.8.0-runtime-ubuntu24.04 .
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}
# the newest of each: Debian keeps only one version of a package, and a pinned one is gone after its next fix
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends git make python3 python3-venv python3-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /skinrepro
COPY constraints.txt settings.ini setup.py pyproject.toml Makefile README.md LICENSE MANIFEST.in ./
COPY skinrepro skinrepro
COPY nbs nbs
RUN make setup
COPY . .
ENV PATH=/skinrepro/.venv/bin:$PATH
VOLUME ["/skinrepro/results", "/skinrepro/artefacts"]
ENTRYPOINT ["skinrepro"]
CMD ["--help"]
