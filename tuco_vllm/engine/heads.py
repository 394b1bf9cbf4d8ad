"""Log-probabilities of tokens, and the embeddings, last norms and heads that only they need.

An engine that scores needs neither model's last norm and head, and never PT's embedding; of an 8B pair they
are 3 GB. So what vLLM has built of them is emptied and put aside (``PutAside``), and filled from the
checkpoints when somebody first asks for the relative reward.

The difference of two models' log-probabilities is smaller than bfloat16's rounding of one: norm and head are
applied in float32 to the stream as it was added up, head weights as they are held.

Shape suffixes: R rows, H hidden size, V vocabulary.
"""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from tuco_kernels import add_rms_norm, row_linear

from tuco_vllm.checkpoint_files import OUTSIDE_LAYERS, text_name, weight_files
from tuco_vllm.engine.compat import GemmaRMSNorm, PPMissingLayer, RMSNorm, UnquantizedEmbeddingMethod
from tuco_vllm.engine.wide_rows import twin

_BLOCK = 1 << 24
"""Logits that are computed at a time: 64 MiB, and on a GPU three times that as products (``row_linear``)."""

HEAD = {"norm": "model.norm", "lm_head": "lm_head"}
"""What only generation and log-probabilities need of a stock model: a checkpoint's names and vLLM's."""


class PutAside:
    """Modules of a stock model, taken out of it before its weights load.

    ``names`` are a checkpoint's for them, and their paths from ``model``; those that it does not have are
    left out.
    """

    def __init__(self, model: Any, names: Mapping[str, str]) -> None:
        self._model = model
        self._modules: dict[str, nn.Module] = {}
        self._paths = names
        for name, path in names.items():
            owner, child = self._place(path)
            module = getattr(owner, child, None)
            if isinstance(module, nn.Module) and not isinstance(module, PPMissingLayer):
                self._modules[name] = module
            setattr(owner, child, PPMissingLayer())
        kept = {id(tensor) for tensor in model.parameters()}  # a head may be the embedding
        self._shapes: dict[nn.Parameter, torch.Size] = {}
        for module in self._modules.values():
            for tensor in module.parameters():
                if id(tensor) not in kept and tensor not in self._shapes:
                    self._shapes[tensor] = tensor.shape
                    tensor.data = tensor.data.new_empty(0)

    def restore(self, directory: Path) -> None:
        """Put them back, with their weights from a checkpoint. Idempotent.

        ValueError for a checkpoint that does not have them all; then they are still aside.
        """
        try:
            for tensor, shape in self._shapes.items():
                tensor.data = tensor.data.new_full(shape, torch.nan)
            self._fill(directory)
        except Exception:
            for tensor in self._shapes:
                tensor.data = tensor.data.new_empty(0)
            raise
        for name, module in self._modules.items():
            setattr(*self._place(self._paths[name]), module)
        self._modules, self._shapes = {}, {}

    def _place(self, path: str) -> tuple[nn.Module, str]:
        parent, _, child = path.rpartition(".")
        return self._model.get_submodule(parent), child

    def _fill(self, directory: Path) -> None:
        # Not by the model's own load_weights, which remembers what was missing when it ran first.
        for name, kind, tensor in _outside_layers(directory) if self._shapes else ():
            parameter: Any = getattr(self._modules.get(name), kind, None)
            if parameter is not None and parameter in self._shapes:
                getattr(parameter, "weight_loader", _copy)(parameter, tensor)
        for name, module in self._modules.items():
            if any(tensor in self._shapes and tensor.isnan().any() for tensor in module.parameters()):
                raise ValueError(f"{directory} has no {name}, or one that is not finite")


def log_probs(model: Any, norm: Any, states_RH: Tensor, rows_N: Tensor, targets_N: Tensor) -> Tensor:
    """``[N]`` float32: log-probabilities of targets at rows of the stream behind the last layer.

    ``norm`` is the model's last. Every rank of tensor parallelism must call it; on those that get no logits
    it is 0.
    """
    # A head of the same weights; by its own, an engine that generates would multiply in 16 bits.
    # Under adapters vLLM has wrapped the processor; theirs of heads is refused (``expect_streams``).
    processor = copy.copy(getattr(model.logits_processor, "base_layer", model.logits_processor))
    head = twin(head_of(model))
    head.quant_method, processor.head_dtype = _Float32Head(), None
    logps = []
    block = max(_BLOCK // head.num_embeddings, 1)
    for rows_B, targets_B in zip(rows_N.split(block), targets_N.split(block), strict=True):
        logits_BV = processor(head, _normed(norm, states_RH[rows_B]), getattr(head, "bias", None))
        if logits_BV is None:
            logps.append(states_RH.new_zeros(len(rows_B)))
            continue
        own_B = logits_BV.gather(1, targets_B[:, None])[:, 0]
        logps.append(own_B - logits_BV.logsumexp(dim=1))
    return torch.cat(logps)


def head_of(model: Any) -> Any:
    """The model's output embeddings; Gemma 2's are its embedding."""
    head = getattr(model, "lm_head", None)
    return model.model.embed_tokens if head is None or isinstance(head, PPMissingLayer) else head


def _normed(norm: Any, states_RH: Tensor) -> Tensor:
    if not isinstance(norm, RMSNorm | GemmaRMSNorm):
        raise ValueError(f"a last norm of the kind {type(norm).__name__} is not known")
    plus_one = isinstance(norm, GemmaRMSNorm)
    return add_rms_norm(None, states_RH, norm.weight.float(), norm.variance_epsilon, plus_one=plus_one)


class _Float32Head(UnquantizedEmbeddingMethod):
    """A head's product in float32, with the weights as they were loaded."""

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return row_linear(x.float(), layer.weight, bias)


def _outside_layers(directory: Path) -> Iterator[tuple[str, str, Tensor]]:
    """Of a checkpoint's tensors that are in no layer the module's name, the parameter's, and the tensor."""
    for path in weight_files(directory):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dict)
                if found := OUTSIDE_LAYERS.match(text_name(name) or ""):
                    yield found[1], found[2], file.get_tensor(name)


def _copy(parameter: Tensor, tensor: Tensor) -> None:
    parameter.data.copy_(tensor)
