"""What lies in a model's directory: JSON, the headers of its safetensors files, and the model's identity.

Neither torch nor vllm. Whatever is wrong is an ``InputError`` of one line that names the mend.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tuco_vllm.errors import InputError

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt"),
    *("added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json"),
)

_SAMPLE_BYTES = 16 * 1024

OUTSIDE_LAYERS = re.compile(r"^(?:model\.)?(embed_tokens|norm|lm_head)\.(weight|bias)$")
"""Tensors of a text model (``text_name``) that are in no layer."""

_TEXT = re.compile(r"^(model\.)?language_model\.(model\.)?")
_OTHER_HALF = re.compile(r"^(model\.)?(vision_tower|multi_modal_projector)\.")


def text_name(name: str) -> str | None:
    """A tensor's name in a text model; None of a vision tower's.

    Of the text model itself a checkpoint says ``language_model.model.layers``, or, newer,
    ``model.language_model.layers``; of its head ``language_model.lm_head``, or ``lm_head``.
    """
    if _OTHER_HALF.match(name):
        return None
    return _TEXT.sub("model.", re.sub(r"^language_model\.lm_head\.", "lm_head.", name))


def fingerprint(directory: Path) -> str:
    """SHA-256 (hex) over config, tokenizer and weights, cheap for 100 GB: 16 KiB of each tensor are read.

    Weights enter by each file's name, size, whole header and a sample from the middle of every tensor. A
    change outside all samples goes unseen: a few edited values may, a training step will not. The path does
    not enter, so a copy elsewhere is the same model.
    """
    digest = hashlib.sha256()

    def add(name: str, content: bytes) -> None:
        digest.update(f"{name}\0{len(content)}\0".encode() + content)

    for name in ("config.json", *TOKENIZER_FILES):
        if (directory / name).is_file():
            add(name, (directory / name).read_bytes())
    for file in weight_files(directory):
        header, tensors = read_header(file)
        add(f"{file.name}\0{file.stat().st_size}", header)
        for sample in _samples(file, len(header), sorted(tensors)):
            digest.update(sample)
    return digest.hexdigest()


class Sample(NamedTuple):
    """A tensor's dtype and shape, and a digest of its middle."""

    form: str
    digest: str


def weight_samples(directory: Path) -> dict[str, Sample]:
    """Of every tensor of a model those samples, whatever file it is in."""
    samples = {}
    for file in weight_files(directory):
        header, _ = read_header(file)
        entries = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        places = [tuple(entry["data_offsets"]) for entry in entries.values()]
        for (name, entry), sample in zip(entries.items(), _samples(file, len(header), places), strict=True):
            form = f"{entry['dtype']} {entry['shape']}"
            samples[name] = Sample(form, hashlib.sha256(sample).hexdigest())
    return samples


def _samples(file: Path, header: int, places: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    with file.open("rb") as data:
        for start, end in places:
            size = min(_SAMPLE_BYTES, end - start)
            data.seek(8 + header + start + (end - start - size) // 2)
            yield data.read(size)


def weight_files(directory: Path) -> list[Path]:
    """model.safetensors, or the shards that its index names. No other format is loaded.

    Raises:
        InputError: there are none, some are missing, or it is unclear which are meant.
    """
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if not index.is_file():
        if single.is_file():
            return [single]
        formats = (".bin", ".pt", ".pth", ".safetensors")
        others = sorted(path.name for path in directory.iterdir() if path.suffix in formats)
        raise InputError(
            f"{directory} has no model.safetensors{' but ' + others[0] if others else ''}: only safetensors "
            "in Hugging Face's layout are loaded; convert it with transformers' "
            "AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
        )
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} has no weight_map: fetch or save the model again")
    files = [directory / shard for shard in sorted(set(map(str, weight_map.values())))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise InputError(f"{directory} lacks the weight files {', '.join(missing)}: fetch the model again")
    if single.is_file() and single not in files:
        raise InputError(f"{single} is not in the index beside it: remove whichever of the two is stale")
    return files


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; InputError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} ({error}): fetch or save the model again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object: fetch or save the model again")
    return content


def read_header(file: Path) -> tuple[bytes, list[tuple[int, int]]]:
    """A safetensors file's header and its tensors' byte ranges in the data that follows.

    The format: 8 bytes little-endian header length N, N bytes of JSON, data.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = stream.read(min(length, size))
        entries = json.loads(header)
        ranges = [tuple(entry["data_offsets"]) for key, entry in entries.items() if key != "__metadata__"]
        stated = 8 + length + max((end for _, end in ranges), default=0)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{file} is not a readable safetensors file: fetch or copy it again") from error
    if size != stated:
        raise InputError(f"{file} has {size} bytes where its header states {stated}: fetch or copy it again")
    return header, ranges
