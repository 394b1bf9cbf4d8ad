"""The tables of README that roofline.py computes, for an H100 by what its docstring assumes. A test compares.

python bench/roofline_tables.py
"""

from collections.abc import Iterator

from roofline import (
    BYTES,
    CONFIGS,
    H100,
    H200,
    USABLE,
    Device,
    Roofline,
    decode,
    engine_bytes,
    kv_bytes_per_token,
    parameters,
    prefill,
    shape_of,
)

STEPS = (2048, 8192, 16384, 32768)
PROMPTS = (32, 128, 512, 2048)
REQUESTS = (1, 16, 64, 256)
CONTEXT = 512
MODELS = {"llama-3-8b": "Llama-3-8B", "llama-2-7b": "Llama-2-7B", "qwen3-8b": "Qwen3-8B"}
MODELS["gemma-2-9b"] = "Gemma-2-9B"
LORA = "LoRA pair of Llama-3-8B"


def scoring_table(device: Device = H100) -> Iterator[str]:
    """Scoring over stock prefill, rows in float32 and, behind the stroke, in the model's dtype."""
    yield "| | prompt | " + " | ".join(f"{tokens:,} a step" for tokens in STEPS) + " | by FLOPs alone |"
    yield "|---" * (len(STEPS) + 3) + "|"
    for name, title in [*MODELS.items(), ("llama-3-8b", LORA)]:
        line, shape = Roofline(CONFIGS[name], device), shape_of(CONFIGS[name])
        adapted = title == LORA
        ours = line.adapter if adapted else line.pair
        for prompt in PROMPTS:
            steps = [prefill(tokens, prompt) for tokens in STEPS]
            stock = [line.stock(step, adapted=adapted) for step in steps]
            cells = [
                " / ".join(f"{seconds / ours(step, wide=wide):.2f}" for wide in (True, False))
                for step, seconds in zip(steps, stock, strict=True)
            ]
            bound = 1 / (1 + 1 / prompt) if adapted else shape.bound(prompt)
            yield f"| {title} | {prompt} | " + " | ".join(cells) + f" | {bound:.2f} |"


def decoding_table(device: Device = H100) -> Iterator[str]:
    """A decode step of stock over one in which all requests are scored or steered. The limit is where
    layers' weights are all that is read: no request, no head."""
    yield "| | limit | " + " | ".join(f"{count} at once" for count in REQUESTS) + " |"
    yield "|---" * (len(REQUESTS) + 2) + "|"
    for name, title in [*MODELS.items(), ("llama-3-8b", LORA)]:
        adapted, config = title == LORA, CONFIGS[name]
        lines = [Roofline(config | {"vocab_size": 0}, device)]
        lines += [Roofline(config, device)] * len(REQUESTS)
        for wide in (False,) if adapted else (False, True):
            cells = []
            for line, step in zip(lines, (decode(count, CONTEXT) for count in (0, *REQUESTS)), strict=True):
                ours = line.adapter if adapted else line.pair
                cells.append(f"{line.stock(step, adapted=adapted) / ours(step, wide=wide):.2f}")
            yield f"| {title}{', float32 rows' * wide} | " + " | ".join(cells) + " |"


def seventy_table(tokens: int = 16384) -> Iterator[str]:
    """What a Llama-3-70B pair takes of each of several GPUs, and what is left for keys and values."""
    config, step = CONFIGS["llama-3-70b"], prefill(tokens, CONTEXT)
    size = parameters(config)
    weights = BYTES * (2 * size["layers"] + size["embedding"])
    yield f"| | of {weights / 1e9:.0f} GB weights | at {tokens:,} a step | left for KV | tokens | ÷ stock |"
    yield "|---|---|---|---|---|---|"
    for device in (H100, H200):
        for gpus in (4, 8):
            taken = engine_bytes(config, tokens, models=2, kv_tokens=0, gpus=gpus)
            left = max(USABLE * device.memory - taken, 0)
            room = int(left * gpus / kv_bytes_per_token(config, 2))
            line = Roofline(config, device, gpus)
            ratio = line.stock(step) / line.pair(step, wide=True)
            gigabytes = " | ".join(f"{size / 1e9:.0f} GB" for size in (weights / gpus, taken, left))
            yield f"| {gpus} × {device.name} | {gigabytes} | {room:,} | {ratio:.2f} |"


if __name__ == "__main__":
    for lines in (scoring_table(), decoding_table(), seventy_table()):
        print("\n".join(lines), end="\n\n")
