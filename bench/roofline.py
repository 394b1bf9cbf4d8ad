"""What arithmetic says of a GPU: the time of a step, what fits, and how far scores and alpha can go.

    python bench/roofline_tables.py        (README's tables, printed)

Physics. A step is a sum of parts, and a part takes as long as its FLOPs at the device's rate of products, or
its bytes at its rate of copies, whichever is longer: no launch, no gap, no CPU. Parts are matrix products
(each reads its weights once), attention (reads its keys and values once), and what moves bytes only: norms,
rope, cache writes, the gated activation. Numbers have two bytes. The compiler fuses PT's norm with FT's, so
that it costs one write. Rows in float32 are three bfloat16 rows in one product (``tuco_kernels.row_linear``).

``stock`` is FT alone. Of a full pair PT adds its keys and values on all tokens, and the rest of its layers on
the rows that are read; an engine that scores runs FT's last layer on rows too. An adapter shares all weights
with its base: in 16 bits PT's rows are more tokens of the same products, in float32 both models' rows share
one more reading of the weights, and PT's keys and values are a copy of FT's base product.
"""

from typing import Any, NamedTuple

from models import Shape

BYTES = 2
_PARTS = 3  # of a float32 row

_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
    "rms_norm_eps": 1e-5,
}


def _config(vocabulary: int, hidden: int, ffn: int, layers: int, heads: int, keys: int, **more: Any) -> dict:
    sizes = {"vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": ffn}
    sizes |= {"num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": keys}
    return _LLAMA | {"head_dim": hidden // heads, "max_position_embeddings": 8192} | sizes | more


CONFIGS: dict[str, dict[str, Any]] = {
    "llama-3-8b": _config(128256, 4096, 14336, 32, 32, 8, rope_theta=500000.0),
    "llama-2-7b": _config(32000, 4096, 11008, 32, 32, 32, rope_theta=10000.0, max_position_embeddings=4096),
    "qwen3-8b": _config(151936, 4096, 12288, 36, 32, 8, model_type="qwen3", rms_norm_eps=1e-6)
    | {"architectures": ["Qwen3ForCausalLM"], "rope_theta": 1000000.0, "max_position_embeddings": 40960},
    "gemma-2-9b": _config(256000, 3584, 14336, 42, 16, 8, model_type="gemma2", rms_norm_eps=1e-6)
    | {"architectures": ["Gemma2ForCausalLM"], "rope_theta": 10000.0, "head_dim": 256, "sliding_window": 4096}
    | {"query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    | {"hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True},
    "llama-3-70b": _config(128256, 8192, 28672, 80, 64, 8, rope_theta=500000.0),
}
"""config.json of Meta-Llama-3-8B, Llama-2-7b-hf, Qwen3-8B, gemma-2-9b and Meta-Llama-3-70B, as far as speed
and shapes go."""


def tiny(config: dict[str, Any]) -> dict[str, Any]:
    """The same family and kind of attention, tiny."""
    grouped = config["num_key_value_heads"] < config["num_attention_heads"]
    return {
        **config,
        **{"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4},
        **{"num_key_value_heads": 2 if grouped else 4, "head_dim": 32, "vocab_size": 2048},
    }


def shape_of(config: dict[str, Any]) -> Shape:
    """The sizes that FLOPs follow from."""
    return Shape(
        hidden=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_dim=config["head_dim"],
        ffn=config["intermediate_size"],
    )


class Device(NamedTuple):
    """What a GPU reaches: FLOP/s of bfloat16 products, bytes/s of a copy; and the bytes of its memory."""

    name: str
    flops: float
    bytes_per_s: float
    memory: int


H100 = Device("H100", 600e12, 2.7e12, 81559 << 20)
H200 = Device("H200", 600e12, 3.9e12, 143771 << 20)
"""Assumed: 60 % of the stated FLOP/s, 80 % of the stated bandwidth. ``gpu.py`` predicts by measured rates."""


class Step(NamedTuple):
    """One step of an engine."""

    tokens: int
    pairs: float
    """Of queries and keys that attention multiplies."""
    cached: float
    """Tokens whose keys and values attention reads."""
    rows: int
    row_pairs: float
    generates: bool = False


def prefill(tokens: int, prompt: int, *, every_row: bool = False, generates: bool = False) -> Step:
    """Prompts of one length; the last row of each is read, or every one."""
    pairs, rows = tokens * (prompt + 1) / 2, max(tokens // prompt, 1)
    if every_row:
        return Step(tokens, pairs, tokens, tokens, pairs, generates)
    return Step(tokens, pairs, tokens, rows, rows * prompt, generates)


def decode(requests: int, context: float) -> Step:
    """One token of each request behind so many of its own."""
    pairs = requests * context
    return Step(requests, pairs, pairs, requests, pairs, generates=True)


class Roofline:
    """Seconds of steps of one architecture on so many devices, all-reduces left out."""

    def __init__(self, config: dict[str, Any], device: Device, gpus: int = 1) -> None:
        shape, self.device, self.gpus = shape_of(config), device, gpus
        products, key_value = shape.layer_flops(-1.0)  # (n + 1) / 2 tokens of attention are none
        self.weights, self.key_weights = products / 2, key_value / 2
        self.layers, self.hidden, self.ffn = shape.layers, shape.hidden, shape.ffn
        self.head = config["vocab_size"] * shape.hidden
        self.queries, self.keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.turned = 2 if config["model_type"] == "qwen3" else 1  # norm and rope, or rope
        self.norms = 12 if config["model_type"] == "gemma2" else 8  # reads and writes of the stream

    def stock(self, step: Step, *, adapted: bool = False) -> float:
        """FT alone; ``adapted``: a base under an adapter of all seven projections."""
        seconds = self._layer(step) + adapted * self._adapted(step.tokens)
        return self.layers * seconds + self._head(step)

    def pair(self, step: Step, *, wide: bool = False) -> float:
        """A full pair whose ``step.rows`` are scored or steered; ``wide``: they are float32."""
        cut = not step.generates
        rows = self._rows(step, step.rows, wide)
        seconds = (self.layers - cut) * self._layer(step)
        seconds += (self.layers + cut) * (self._keys(step.tokens) + rows)
        return seconds + wide * (self.layers - cut) * rows + self._head(step)

    def adapter(self, step: Step, *, wide: bool = False) -> float:
        """A base and an adapter of it."""
        copies = self._moved(step.tokens * (8 + 2 * self.turned) * self.keys)
        rows = self._attention(step.row_pairs, step.cached)
        run = step
        if wide:
            rows += self._rows(step, 2 * step.rows, wide)
        else:
            run = step._replace(tokens=step.tokens + step.rows)
        layer = self._layer(run) + self._adapted(run.tokens)
        return self.layers * (layer + copies + rows) + self._head(step)

    def _layer(self, step: Step) -> float:
        moved = 2 * self.turned * (self.queries + self.keys) + 4 * self.keys + 3 * self.ffn
        seconds = self._product(self.weights, step.tokens) + self._attention(step.pairs, step.cached)
        return seconds + self._moved(step.tokens * moved) + self._stream(step.tokens * self.norms)

    def _keys(self, tokens: int) -> float:
        moved = 2 * self.turned * self.keys + 4 * self.keys
        return self._product(self.key_weights, tokens) + self._moved(tokens * moved) + self._stream(tokens)

    def _rows(self, step: Step, rows: int, wide: bool) -> float:
        products = self._product(self.weights - self.key_weights, rows * (_PARTS if wide else 1))
        return products + self._attention(step.row_pairs, step.cached)

    def _adapted(self, tokens: int) -> float:
        """An adapter's seven products, bound by bytes up to any usual rank: each reads its input once more,
        and reads and writes its output."""
        sizes = 9 * self.hidden + 3 * self.queries + 4 * self.keys + 5 * self.ffn
        return self._moved(tokens * sizes)

    def _head(self, step: Step) -> float:
        return self._product(self.head, step.rows) if step.generates else 0.0

    def _product(self, weights: float, tokens: float) -> float:
        flops, moved = 2 * weights * tokens / self.device.flops, BYTES * weights / self.device.bytes_per_s
        return max(flops, moved) / self.gpus

    def _attention(self, pairs: float, cached: float) -> float:
        flops = 4 * self.queries * pairs / self.device.flops
        return max(flops / self.gpus, self._moved(2 * self.keys * cached))

    def _moved(self, numbers: float) -> float:
        return BYTES * numbers / self.device.bytes_per_s / self.gpus

    def _stream(self, widths: float) -> float:
        """What has the hidden size, every rank has whole."""
        return BYTES * widths * self.hidden / self.device.bytes_per_s


def parameters(config: dict[str, Any]) -> dict[str, int]:
    """Numbers in the decoder layers, and in the embedding (the head is as large)."""
    shape = shape_of(config)
    norms = {"qwen3": 2 * shape.hidden + 2 * shape.head_dim, "gemma2": 4 * shape.hidden}
    products = int(shape.layer_flops(-1.0)[0]) // 2
    layer = products + norms.get(config["model_type"], 2 * shape.hidden)
    return {"layers": shape.layers * layer, "embedding": config["vocab_size"] * shape.hidden}


def kv_bytes_per_token(config: dict[str, Any], models: int) -> int:
    """Keys and values of one token, in all layers of one model or two."""
    shape = shape_of(config)
    return models * 2 * shape.layers * shape.kv_heads * shape.head_dim * BYTES


def engine_bytes(
    config: dict[str, Any], step_tokens: int, *, models: int, kv_tokens: int, logits: int = 0, gpus: int = 1
) -> int:
    """What an engine takes of each device: weights, KV cache, a step's widest activations, and 2 GiB for the
    context, workspaces and graphs. ``logits``: rows of them at once, in an engine that generates."""
    size = parameters(config)
    ends = 2 if logits and not config["tie_word_embeddings"] else 1
    weights = BYTES * (models * size["layers"] + ends * size["embedding"])
    cache = kv_tokens * kv_bytes_per_token(config, models)
    widest = 4 * config["intermediate_size"] // gpus + 10 * config["hidden_size"]
    other = BYTES * step_tokens * widest + 3 * 4 * logits * config["vocab_size"] + (2 << 30)
    return (weights + cache) // gpus + other


USABLE = 0.92
"""The share of a device's memory that engines may fill."""


def seconds_of_turn(
    line: Roofline, step_tokens: int, prompt: int, requests: int, output: int, *, wide: bool
) -> dict[str, float]:
    """What ``gpu.py``'s ways to use so many prompts take; with ``output`` tokens of each, all at once."""
    if not output:
        tokens = requests * prompt
        step = prefill(min(step_tokens, tokens), prompt)
        steps = tokens / step.tokens
        return {"stock": steps * line.stock(step), "tuco": steps * line.pair(step, wide=wide)}
    first = prefill(requests * prompt, prompt, generates=True)
    every = prefill(requests * prompt, prompt, every_row=True, generates=True)
    later = decode(requests, prompt + output / 2)
    plain = line.stock(first) + (output - 1) * line.stock(later)
    steered = line.pair(every) + (output - 1) * line.pair(later)
    scored = steered - line.pair(every) + line.pair(first)
    return {"stock": plain, "plain": plain, "scored": scored, "steered": steered, "mixed": steered}
