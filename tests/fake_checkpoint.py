"""Model directories that hold a config and a few tensors: enough for every check made before weights load."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def write_model(directory: Path, architecture: str = "LlamaForCausalLM", **changes) -> Path:
    """A model directory with a config and three tensors; a change of None leaves the key out."""
    stated = {"architectures": [architecture], "intermediate_size": 32, "vocab_size": 512, **SIZES, **changes}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({k: v for k, v in stated.items() if v is not None}))
    random = np.random.default_rng(0)
    tensors = {name: random.standard_normal((256, 256), dtype=np.float32) for name in "abc"}
    save_file(tensors, directory / "model.safetensors")
    return directory


def shard(directory: Path, names: tuple[str, ...] = ("one", "two")) -> None:
    """Replace the single file of a model by an index and two equal shards."""
    single = directory / "model.safetensors"
    files = [f"{name}.safetensors" for name in names]
    for file in files:
        (directory / file).write_bytes(single.read_bytes())
    single.unlink()
    index = {"weight_map": dict(zip("ab", files, strict=True))}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
