"""The model pair, and every check that can be made before weights load.

Reads JSON and the headers of safetensors files only: neither torch nor vllm. Whatever is wrong is an
``InputError`` of one line that names the mend.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import errors as hub
from huggingface_hub import snapshot_download

from tuco_vllm.errors import InputError
from tuco_vllm.families import FAMILIES, architecture_of, reason_against, text_of

PAIRED_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
"""What PT and FT must share: layers are compared one by one on one residual stream, and both models' KV
caches have one block layout. Vocabulary, MLP width, rope, eps, norms, biases and windows may differ."""

ROW_DTYPES = ("auto", "float32", "model")
"""What the rows that scores are made of may be computed in: "auto" is float32 where the family allows it."""

_CONFIG_FILES = ["*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt"]
_OTHER_FORMATS = ["*/*", "consolidated*"]  # of the same weights

_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt"),
    *("added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json"),
)

_SAMPLE_BYTES = 16 * 1024


@dataclass(frozen=True)
class Checkpoint:
    """One model as it lies on disk.

    ``name`` is what the caller gave (a directory or ``org/name[@revision]``), ``directory`` the absolute
    path of its files, ``config`` the contents of its config.json.
    """

    name: str
    directory: Path
    config: dict[str, Any] = field(repr=False, compare=False)

    @property
    def architecture(self) -> str:
        """Hugging Face class name, a key of ``families.FAMILIES`` once checked."""
        return architecture_of(self.config)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The values of ``PAIRED_SIZES``, with what config.json leaves out filled in as transformers does."""
        text = text_of(self.config)
        stated = {key: text[key] for key in PAIRED_SIZES if key in text}
        sizes = {**FAMILIES[self.architecture].unstated, **stated}
        for key in ("num_hidden_layers", "hidden_size", "num_attention_heads"):
            if type(sizes.get(key)) is not int or sizes[key] < 1:
                stands = json.dumps(sizes.get(key))
                raise InputError(
                    f"{self.name}: config.json has {key} {stands}: fetch or save the model again"
                )
        heads = sizes["num_attention_heads"]
        sizes["num_key_value_heads"] = sizes.get("num_key_value_heads") or heads
        sizes["head_dim"] = sizes.get("head_dim") or sizes["hidden_size"] // heads
        return {key: sizes[key] for key in PAIRED_SIZES}

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the model, for a job's identity and Parquet metadata: see ``fingerprint``."""
        return fingerprint(self.directory)


@dataclass(frozen=True)
class ModelPair:
    """A pre-trained model and the model fine-tuned from it, checked to fit together."""

    pt: Checkpoint
    ft: Checkpoint


def resolve_pair(
    pt: str | Path, ft: str | Path, *, trust_remote_code: bool = False, weights: bool = True
) -> ModelPair:
    """Find both models, fetching them from the Hugging Face hub if need be, and check that they fit.

    Both configurations are checked before any weights are fetched. PT and FT may be the same model: that
    measures the pair's noise floor.

    Args:
        pt, ft: a directory, or a hub id ``org/name[@revision]``; an existing directory wins.
        trust_remote_code: accept models that bring their own Python code.
        weights: False leaves the weight files alone, for engines that make up their weights.

    Raises:
        InputError: anything about the models that would make scoring fail or be wrong.
    """
    pair = ModelPair(
        _read_checkpoint("PT", str(pt), trust_remote_code), _read_checkpoint("FT", str(ft), trust_remote_code)
    )
    _check_fit(pair.pt, pair.ft)
    if not weights:
        return pair
    for checkpoint in (pair.pt, pair.ft):
        if not _local(checkpoint.name).is_dir():
            _fetch(checkpoint.name, [*_CONFIG_FILES, "*.safetensors"], commit=checkpoint.directory.name)
        for file in weight_files(checkpoint.directory):
            _read_header(file)
    return pair


def expect_row_dtype(pair: ModelPair, row_dtype: str) -> None:
    """InputError unless rows of ``pair`` can be computed as ``row_dtype`` says."""
    if row_dtype not in ROW_DTYPES:
        raise InputError(f"row_dtype must be one of {', '.join(ROW_DTYPES)}, not {row_dtype!r}")
    if row_dtype == "float32" and not FAMILIES[pair.ft.architecture].float32_rows:
        raise InputError(
            f"{pair.ft.name} ({pair.ft.architecture}): its rows (experts, or layers of Hugging Face's) are "
            "computed in the model's dtype only: leave --row-dtype out, or score with --dtype float32"
        )


def fingerprint(directory: Path) -> str:
    """SHA-256 (hex) over config, tokenizer and weights, cheap for 100 GB: 16 KiB of each tensor are read.

    Weights enter by each file's name, size, whole header and a sample from the middle of every tensor. A
    change outside all samples goes unseen: a few edited values may, a training step will not. The path does
    not enter, so a copy elsewhere is the same model.
    """
    digest = hashlib.sha256()

    def add(name: str, content: bytes) -> None:
        digest.update(f"{name}\0{len(content)}\0".encode() + content)

    for name in ("config.json", *_TOKENIZER_FILES):
        if (directory / name).is_file():
            add(name, (directory / name).read_bytes())
    for file in weight_files(directory):
        header, tensors = _read_header(file)
        add(f"{file.name}\0{file.stat().st_size}", header)
        with file.open("rb") as data:
            for start, end in sorted(tensors):
                size = min(_SAMPLE_BYTES, end - start)
                data.seek(8 + len(header) + start + (end - start - size) // 2)
                digest.update(data.read(size))
    return digest.hexdigest()


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
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} has no weight_map: fetch or save the model again")
    files = [directory / shard for shard in sorted(set(map(str, weight_map.values())))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise InputError(f"{directory} lacks the weight files {', '.join(missing)}: fetch the model again")
    if single.is_file() and single not in files:
        raise InputError(f"{single} is not in the index beside it: remove whichever of the two is stale")
    return files


def _read_checkpoint(role: str, name: str, trust_remote_code: bool) -> Checkpoint:
    """Find the directory and check all that one model's config says by itself."""
    directory = _find(role, name)
    if (directory / "adapter_config.json").is_file():
        base = _read_json(directory / "adapter_config.json").get("base_model_name_or_path")
        raise InputError(
            f"{role} {name} is an adapter (its base: {base}), not a full model: merge it into its base "
            "(peft: merge_and_unload, then save_pretrained) and give the merged model"
        )
    if not (directory / "config.json").is_file():
        raise InputError(f"{role} {name} is not a model directory: it has no config.json")
    checkpoint = Checkpoint(name, directory.absolute(), _read_json(directory / "config.json"))
    if reason := reason_against(checkpoint.config):
        raise InputError(f"{role} {name}: architecture {checkpoint.architecture} is not supported: {reason}")
    if checkpoint.config.get("quantization_config") or (directory / "hf_quant_config.json").is_file():
        raise InputError(
            f"{role} {name} is quantized: TuCo takes differences of the two models' outputs, in which "
            "quantization error would count as fine-tuning; give the unquantized model"
        )
    if checkpoint.config.get("auto_map") and not trust_remote_code:
        raise InputError(
            f"{role} {name} brings its own Python code (auto_map in config.json): read it, then allow it "
            "with --trust-remote-code"
        )
    return checkpoint


def _check_fit(pt: Checkpoint, ft: Checkpoint) -> None:
    different = [
        f"{key} {pt.sizes[key]} and {ft.sizes[key]}" for key in PAIRED_SIZES if pt.sizes[key] != ft.sizes[key]
    ]
    if pt.architecture != ft.architecture:
        different = [f"architecture {pt.architecture} and {ft.architecture}"]
    if different:
        raise InputError(
            f"PT {pt.name} and FT {ft.name} do not fit together ({', '.join(different)}): PT must be the "
            "model that FT was fine-tuned from"
        )


def _find(role: str, name: str) -> Path:
    """The directory of a model: as given, or the hub's snapshot of it with all but the weights."""
    path = _local(name)
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(f"{role} {name} is a file: give the model's directory")
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+(@[\w./-]+)?", name):
        raise InputError(f"{role} {name}: there is no such directory (and a hub id is org/name[@revision])")
    return _fetch(name, _CONFIG_FILES)


def _local(name: str) -> Path:
    return Path(os.path.expanduser(name))  # Path.expanduser raises on an unknown ~user


def _fetch(name: str, patterns: list[str], commit: str | None = None) -> Path:
    """Files of a hub id from the local cache or the hub; ``commit`` keeps two fetches on one version."""
    repository, _, revision = name.partition("@")
    try:
        return Path(
            snapshot_download(
                repository,
                revision=commit or revision or None,
                allow_patterns=patterns,
                ignore_patterns=_OTHER_FORMATS,
            )
        )
    except hub.GatedRepoError as error:  # a kind of RepositoryNotFoundError, so it comes first
        raise InputError(
            f"{name} is gated: accept its terms on its hub page, then log in (hf auth login, or set HF_TOKEN)"
        ) from error
    except hub.RevisionNotFoundError as error:
        raise InputError(f"{repository} has no revision {revision!r} on the hub") from error
    except (hub.RepositoryNotFoundError, hub.HFValidationError) as error:
        raise InputError(
            f"{name}: no such directory, and no such model on the hub (if it is private, set HF_TOKEN)"
        ) from error
    except hub.LocalEntryNotFoundError as error:
        raise InputError(
            f"{name}: no such directory, not (wholly) in the hub cache, and the hub is out of reach (no "
            f"network, or HF_HUB_OFFLINE=1): fetch it where it is not, with hf download {repository}"
        ) from error
    except Exception as error:  # proxies, TLS, a full disk: to the caller, one thing
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(f"{name} could not be fetched: {type(error).__name__}: {reason}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} ({error}): fetch or save the model again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object: fetch or save the model again")
    return content


def _read_header(file: Path) -> tuple[bytes, list[tuple[int, int]]]:
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
