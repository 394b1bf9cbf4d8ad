#!/bin/sh
# Makes the virtual environment named by $1 ready: tuco_vllm (editable), vLLM for this machine, dev tools.
# CUDA where nvidia-smi finds a working GPU, else CPU. Repeating it changes nothing that is current.
set -eu
venv=$1
cd "$(dirname "$0")/.."

"${PYTHON:-python3}" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet --quiet "$@"; }

if nvidia-smi >/dev/null 2>&1; then build=cuda; else build=cpu; fi
echo "Installing tuco_vllm for $build into $venv; the first time takes some minutes."

if [ "$build" = cuda ]; then
    pip install --editable ".[cuda,dev]"
else
    # vLLM's CPU build asks for torch==...+cpu, which only PyTorch's own index has. Where pip is not told of
    # that index, uv is: it knows it by name. What pip missed is all it fetches: it would look there for Triton
    # too.
    if ! pip install --editable ".[cpu,dev]" 2>"$venv/pip.err"; then
        torch=$(grep -om1 'torch==[0-9.]*+cpu' "$venv/pip.err") || { cat "$venv/pip.err" >&2; exit 1; }
        echo "Fetching $torch with uv, which knows where PyTorch's CPU builds are."
        pip install uv
        "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --torch-backend=cpu "$torch"
        pip install --editable ".[cpu,dev]"
    fi
    # It also asks for these, of any build, and pip takes CUDA's. They break `import transformers`
    # ("operator torchvision::nms does not exist"), and text models need none of them.
    pip uninstall --yes torchvision torchaudio torchcodec
fi

"$venv/bin/python" -c "import vllm; from transformers import LlamaForCausalLM"
