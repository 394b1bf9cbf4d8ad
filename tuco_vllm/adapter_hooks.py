"""An adapter put on a Hugging Face model without changing its weights: for the reference, from disk too."""

from collections import defaultdict
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tuco_vllm.adapter import WEIGHTS, Adapter


def put_on(model: nn.Module, adapter: Adapter, dtype: torch.dtype) -> None:
    """Let each adapted module of ``model``, an AutoModel of the base, add s B A x to what it gives.

    Computed in ``dtype``. A head is no part of such a model, and is left out.
    """
    halves: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in load_file(adapter.directory / WEIGHTS).items():
        if (half := adapter.half_of(name)) is not None:
            halves[half.module][half.side] = tensor.to(dtype)
    for module, parts in halves.items():
        if module != "lm_head":
            hook = _of_embedding if module.endswith("embed_tokens") else _of_linear
            own = model.get_submodule(module.removeprefix("model."))
            own.register_forward_hook(hook(parts["A"], adapter.scale(module) * parts["B"]))


def _of_linear(a_rI: Tensor, b_Or: Tensor) -> Any:
    def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + args[0] @ a_rI.to(output.device).T @ b_Or.to(output.device).T

    return hook


def _of_embedding(a_rV: Tensor, b_Hr: Tensor) -> Any:
    def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + a_rV.to(output.device).T[args[0]] @ b_Hr.to(output.device).T

    return hook
