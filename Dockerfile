# Longreel on a GPU node: torch's wheels bring CUDA, cuDNN and NCCL with them, the node brings the driver.
#
#   docker build -t longreel .                                     # driver 580 or newer
#   docker build -t longreel --build-arg TORCH=cu126 .             # driver 525 or newer
#   docker run --gpus all --shm-size=16g --ulimit memlock=-1 --cap-add SYS_PTRACE longreel       # longreel doctor
#   docker run --gpus all --shm-size=16g --ulimit memlock=-1 -v /data:/data longreel longreel train /data/run.yaml
#
# The same packages as `make setup`, without those of the tests. Docs: docs/gpu.md.
FROM python:3.11-slim

ARG TORCH=cu130
ARG TORCH_INDEX=https://download.pytorch.org/whl

# gcc: Triton compiles a launcher of its kernels, once a machine. verbs: NCCL over InfiniBand and RoCE. wget: probes of
# Kubernetes operators for Ray. A TERM that tini passes on makes a run save a checkpoint.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev ibverbs-providers libibverbs1 librdmacm1 tini wget \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/longreel
COPY constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt setuptools wheel \
    && pip install --no-cache-dir -c constraints.txt --extra-index-url "${TORCH_INDEX}/${TORCH}" \
        "$(grep '^torch==' constraints.txt)+${TORCH}"

COPY pyproject.toml README.md LICENSE ./
COPY launcher launcher
COPY data data
COPY models models
COPY parallel parallel
COPY recipes recipes
COPY benchmarks benchmarks
RUN pip install --no-cache-dir --no-build-isolation -c constraints.txt -e .

# Any user will do: nothing is written but run folders, and caches under HOME.
RUN useradd --create-home --uid 1000 longreel
USER longreel
WORKDIR /home/longreel
ENV PYTHONUNBUFFERED=1

# The image is whole: packages, DeepSpeed, Ray, gloo, attention, video. On a node the same command looks at its GPUs.
RUN longreel doctor

ENTRYPOINT ["tini", "-g", "--"]
CMD ["longreel", "doctor"]
