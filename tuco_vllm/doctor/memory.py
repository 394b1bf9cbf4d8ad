"""Whether a pair fits a GPU, told before any weight is fetched or loaded.

Weights are counted from the headers of safetensors files, and the cache from config.json. Neither torch nor
vllm. The count is for engines in 16 bits, tuco's default; ``--dtype float32`` doubles it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from rich.console import Console

from tuco_vllm.adapter import Shape, shapes_of
from tuco_vllm.checkpoint_files import OUTSIDE_LAYERS, text_name, weight_files
from tuco_vllm.config import Checkpoint, ModelPair, resolve_pair
from tuco_vllm.errors import InputError
from tuco_vllm.families import FAMILIES, text_of
from tuco_vllm.hub import local_path, weight_shapes

GIB = 1 << 30
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM makes room for: an adapter takes the next one up."""

_BYTES = 2
_UTILIZATION = 0.92
"""vLLM's ``gpu_memory_utilization``."""

_STEP_TOKENS = 8192
_FIXED = 2 * GIB
"""What an engine takes beside weights and cache is estimated: activations of a step of so many tokens, and as
much again for CUDA, its graphs, logits and what the allocator loses."""

_VOCABULARY_BLOCK = 64
"""vLLM pads embedding and head to a multiple of so many rows."""

_MOST_GPUS = 8


@dataclass(frozen=True)
class Footprint:
    """Bytes of a pair's engine, before tensor parallelism shares them out."""

    ft: int
    """FT's layers and embedding; under an adapter the base's."""
    head: int
    """FT's last norm and head, which an engine that only scores leaves out. 0 for the embedding's twin."""
    pt: int
    """What PT adds: its layers. Tensors that training left alone are held twice. 0 under an adapter."""
    adapter: int
    """Room for one adapter."""
    adapter_head: int
    """Room for its share of the head, where the engine generates."""
    per_token: int
    """Keys and values of one token, of both models, in every layer."""
    step: int
    """Activations of a step, an estimate."""
    heads: int
    kv_heads: int

    def weights(self, generates: bool) -> int:
        """Weights of an engine that generates, or only scores."""
        return self.ft + self.pt + self.adapter + generates * (self.head + self.adapter_head)

    def tokens(self, gib: float, *, generates: bool, gpus: int = 1) -> int:
        """How many tokens the cache holds, of all sequences together, on each of ``gpus`` of ``gib`` GiB."""
        left = gib * GIB * _UTILIZATION - _FIXED - self.step - self.weights(generates) / gpus
        return max(int(left / self.per_token_on_each(gpus)), 0)

    def per_token_on_each(self, gpus: int) -> float:
        """Bytes of a token on one GPU: a key-value head is never cut."""
        return self.per_token * max(self.kv_heads / gpus, 1) / self.kv_heads

    def gpus_for(self, gib: float, length: int) -> int | None:
        """The fewest GPUs (tensor parallelism) on which one sequence of ``length`` is scored; None: none."""
        for gpus in range(1, _MOST_GPUS + 1):
            if self.heads % gpus == 0 and self.tokens(gib, generates=False, gpus=gpus) >= length:
                return gpus
        return None


class _Elements(NamedTuple):
    """Numbers in a checkpoint's text model."""

    layers: int
    embedding: int
    last: int
    """Norm and head behind the layers."""


def footprint(pair: ModelPair) -> Footprint:
    """What an engine of ``pair`` takes. The weights need not be here: the hub is asked for their headers."""
    shapes = tensor_shapes(pair.ft)
    ft, text, sizes = _elements(shapes, pair.ft), text_of(pair.ft.config), pair.ft.sizes
    adapter = adapter_head = 0
    if pair.ft.adapter is None:
        pt = _elements(tensor_shapes(pair.pt), pair.pt).layers
    else:
        pt, stated = 0, pair.ft.adapter.rank
        rank = next((known for known in LORA_RANKS if known >= stated), stated)
        adapter, adapter_head = _slot(shapes, rank, FAMILIES[pair.ft.architecture].adapted_embeddings)
    cached = sizes["num_hidden_layers"] * sizes["num_key_value_heads"] * sizes["head_dim"]
    widest = 3 * int(text.get("intermediate_size") or 4 * sizes["hidden_size"]) + 4 * sizes["hidden_size"]
    return Footprint(
        ft=_BYTES * (ft.layers + ft.embedding),
        head=_BYTES * ft.last,
        pt=_BYTES * pt,
        adapter=_BYTES * adapter,
        adapter_head=_BYTES * adapter_head,
        per_token=2 * 2 * _BYTES * cached,  # two models, keys and values
        step=_BYTES * _STEP_TOKENS * widest,
        heads=sizes["num_attention_heads"],
        kv_heads=sizes["num_key_value_heads"],
    )


def tensor_shapes(checkpoint: Checkpoint) -> dict[str, Shape]:
    """Of a model's tensors, from its own files or, where they are not here, from the hub."""
    try:
        files = weight_files(checkpoint.directory)
    except InputError:
        if local_path(checkpoint.name).is_dir():
            raise
        return weight_shapes(checkpoint.name, checkpoint.directory.name)
    return {name: shape for file in files for name, shape in shapes_of(file).items()}


def _elements(shapes: Mapping[str, Shape], checkpoint: Checkpoint) -> _Elements:
    tied = bool(text_of(checkpoint.config).get("tie_word_embeddings"))
    found = {"layers": 0, "embed_tokens": 0, "norm": 0, "lm_head": 0}
    for name, shape in shapes.items():
        own = text_name(name)
        if own is None or own.endswith("rotary_emb.inv_freq"):
            continue
        outside = OUTSIDE_LAYERS.match(own)
        place = outside[1] if outside else "layers"
        if place in ("embed_tokens", "lm_head"):
            shape = (-(-shape[0] // _VOCABULARY_BLOCK) * _VOCABULARY_BLOCK, *shape[1:])
        if not (place == "lm_head" and tied):
            found[place] += math.prod(shape)
    return _Elements(found["layers"], found["embed_tokens"], found["norm"] + found["lm_head"])


def _slot(shapes: Mapping[str, Shape], rank: int, embeds: bool) -> tuple[int, int]:
    """Numbers in vLLM's room for one adapter: all that it could change, and the head's share of that."""
    layers = embedding = 0
    for name, shape in shapes.items():
        outside = OUTSIDE_LAYERS.match(text_name(name) or "")
        if len(shape) == 2 and outside is None:
            layers += rank * sum(shape)
        elif outside and outside[1] == "embed_tokens":
            embedding = rank * sum(shape)
    return layers + embeds * embedding, embeds * embedding


def tell_fit(pt: str | None, ft: str, gib: float, max_model_len: int | None) -> int:
    """Print what a pair takes and whether it fits ``gib`` GiB. Returns 0.

    Raises InputError, with what would help, for a pair of which not one sequence of ``max_model_len`` can be
    scored; that length is what config.json states if None.
    """
    pair = resolve_pair(pt, ft, weights=False)
    need, length = footprint(pair), max_model_len or _stated_length(pair.ft)
    console = Console(highlight=False, soft_wrap=True)
    name = "base" if pair.ft.adapter else "FT"
    rows = [(f"{name}, embedding and layers", need.ft), (f"{name}'s head, to generate", need.head)]
    if pair.ft.adapter:
        rows.append((f"adapter of rank {pair.ft.adapter.rank}", need.adapter + need.adapter_head))
    rows += [("PT's layers", need.pt), ("activations and CUDA (estimate)", need.step + _FIXED)]
    for what, count in rows:
        console.print(f"{what:34}{count / GIB:8.2f} GiB")
    console.print(f"{'cache, both models':34}{need.per_token / 1024:8.1f} KiB a token")
    for command, generates in (("tuco score", False), ("tuco serve", True)):
        tokens = need.tokens(gib, generates=generates)
        console.print(f"{command} in {gib:g} GiB: {_verdict(tokens, length)}")
    if text_of(pair.ft.config).get("sliding_window"):
        console.print("Sliding windows are not counted: the cache may hold more.")
    if need.tokens(gib, generates=False) < length:
        raise InputError(f"the pair does not fit {gib:g} GiB: {_mends(need, gib, length, pair)}")
    return 0


def _stated_length(ft: Checkpoint) -> int:
    stated = text_of(ft.config).get("max_position_embeddings")
    if type(stated) is not int:
        raise InputError(f"{ft.name}: config.json states no max_position_embeddings: give --max-model-len")
    return stated


def _verdict(tokens: int, length: int) -> str:
    if tokens < length:
        return f"no, {tokens:,} tokens of cache are less than one sequence of {length:,}"
    return f"yes, {tokens:,} tokens of cache, {tokens // length:,} sequences of {length:,}"


def _mends(need: Footprint, gib: float, length: int, pair: ModelPair) -> str:
    mends = []
    if gpus := need.gpus_for(gib, length):
        mends.append(f"--tensor-parallel-size {gpus} on {gpus} such GPUs fits")
    if (tokens := need.tokens(gib, generates=False)) >= 1024:
        mends.append(f"--max-model-len {tokens // 256 * 256} fits")
    if pair.ft.adapter is None:
        without = (need.weights(False) - need.pt) / GIB
        mends.append(f"an FT that is a LoRA adapter would share its base's weights, {without:.1f} GiB")
    return "; ".join(mends) or "take a larger GPU"
