# `tuco serve` on a GPU machine:
#
#   docker build -t tuco .
#   docker run --gpus all --ipc=host -p 8000:8000 -e HF_HOME=/cache -v ~/.cache/huggingface:/cache tuco \
#       --pt ORG/BASE --ft ORG/FINE-TUNE --host 0.0.0.0 --api-key KEY
#
# The base is vLLM's own image, of a version that tuco_vllm knows; torch and CUDA are what it brings.
ARG BASE=vllm/vllm-openai:v0.32.0
FROM ${BASE}

COPY pyproject.toml README.md LICENSE /opt/tuco/
COPY kernels /opt/tuco/kernels
COPY tuco_vllm /opt/tuco/tuco_vllm
RUN python3 -m pip install --no-cache-dir /opt/tuco && tuco --version

EXPOSE 8000
ENTRYPOINT ["tuco", "serve"]
