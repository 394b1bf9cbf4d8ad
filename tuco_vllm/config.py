"""The model pair, and every check that can be made before weights load.

Reads JSON and the headers of safetensors files only: neither torch nor vllm. Whatever is wrong is an
``InputError`` of one line that names the mend.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tuco_vllm.adapter import BASE, MERGE, Adapter, expect_fit, is_adapter, read_adapter, shapes_of
from tuco_vllm.checkpoint_files import (
    TOKENIZER_FILES,
    fingerprint,
    read_header,
    read_json,
    weight_files,
    weight_samples,
)
from tuco_vllm.errors import InputError
from tuco_vllm.families import FAMILIES, architecture_of, reason_against, text_of
from tuco_vllm.hub import CONFIG_FILES, fetch, find_model, local_path

PAIRED_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
"""What PT and FT must share: layers are compared one by one on one residual stream, and both models' KV
caches have one block layout. Vocabulary, MLP width, rope, eps, norms, biases and windows may differ."""

ROW_DTYPES = ("auto", "float32", "model")
"""What the rows that scores are made of may be computed in: "auto" is float32 where the family allows it."""

QUANTIZED = "quantization_config"
"""What a quantized model's config.json has."""

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""Files without which there is no tokenizer."""


@dataclass(frozen=True)
class Checkpoint:
    """One model as it lies on disk.

    ``name`` is what the caller gave (a directory or ``org/name[@revision]``), ``directory`` the absolute
    path of its files, ``config`` the contents of its config.json.
    """

    name: str
    directory: Path
    config: dict[str, Any] = field(repr=False, compare=False)
    adapter: Adapter | None = None
    """Of an FT that is a base model under an adapter; ``name`` is then the adapter's, all else the base's."""

    @property
    def source(self) -> Path:
        """Where what the caller named lies: its own files, or the adapter's."""
        return self.adapter.directory if self.adapter else self.directory

    @property
    def tokenizer_directory(self) -> Path:
        """Where its tokenizer and chat template lie: an adapter may bring its own."""
        if self.adapter and any((self.adapter.directory / name).is_file() for name in _TOKENIZERS):
            return self.adapter.directory
        return self.directory

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
        whole = fingerprint(self.directory)
        if self.adapter is None:
            return whole
        return hashlib.sha256(f"{whole}\0{self.adapter.fingerprint}".encode()).hexdigest()


@dataclass(frozen=True)
class ModelPair:
    """A pre-trained model and the model fine-tuned from it, checked to fit together."""

    pt: Checkpoint
    ft: Checkpoint
    note: str = ""
    """What a user should know of it."""


def resolve_pair(
    pt: str | Path | None, ft: str | Path, *, trust_remote_code: bool = False, weights: bool = True
) -> ModelPair:
    """Find both models, fetching them from the Hugging Face hub if need be, and check that they fit.

    Both configurations are checked before any weights are fetched. PT and FT may be the same model: that
    measures the pair's noise floor.

    Args:
        pt, ft: a directory, or a hub id ``org/name[@revision]``; an existing directory wins. FT may be a PEFT
            LoRA adapter of PT; then PT may be None, and is the base that the adapter names.
        trust_remote_code: accept models that bring their own Python code.
        weights: False leaves the weight files alone, for engines that make up their weights.

    Raises:
        InputError: anything about the models that would make scoring fail or be wrong.
    """
    directory = find_model("FT", str(ft))
    if is_adapter(directory):
        return _adapter_pair(pt, str(ft), directory, trust_remote_code)
    if pt is None:
        raise InputError(f"PT is missing: only an adapter names its base, and FT {ft} is a whole model")
    pair = ModelPair(
        _read_checkpoint("PT", str(pt), trust_remote_code), _read_checkpoint("FT", str(ft), trust_remote_code)
    )
    _check_fit(pair.pt, pair.ft)
    for checkpoint in (pair.pt, pair.ft) if weights else ():
        _fetch_weights(checkpoint)
    return pair


def resolve_adapter(name: str | Path, base: Checkpoint) -> tuple[Adapter, str]:
    """Find an adapter of ``base``, fetching it if need be, and check that it fits.

    Returns it, and what cannot be known of whether it was trained on that model. InputError for what cannot
    be scored.
    """
    directory = find_model("FT", str(name))
    if not is_adapter(directory):
        raise InputError(f"{name} is no adapter: it has no adapter_config.json")
    if not local_path(str(name)).is_dir():
        directory = fetch(str(name), [*CONFIG_FILES, "adapter_model.safetensors"])
    adapter, family = read_adapter(str(name), directory), FAMILIES[base.architecture]
    if not family.adapted_embeddings and any(map(adapter.adapts, ("embed_tokens", "lm_head"))):
        kind = family.known_as
        raise InputError(
            f"the adapter {name} changes embedding or head, which vLLM does not of {kind}: {MERGE}"
        )
    shapes = [shapes_of(file) for file in weight_files(base.directory)]
    expect_fit(adapter, base.name, {tensor: shape for file in shapes for tensor, shape in file.items()})
    return adapter, _doubt_of_base(adapter, base)


def other_adapters(names: Sequence[str], pair: ModelPair) -> tuple[Checkpoint, ...]:
    """More fine-tunes for an engine of ``pair``: adapters of its base. InputError for what it cannot take."""
    if names and pair.ft.adapter is None:
        raise InputError(
            f"several FT share an engine where all are LoRA adapters; {pair.ft.name} is a whole model"
        )
    fts = [pair.ft]
    for name in names:
        adapter, _ = resolve_adapter(name, pair.pt)
        expect_tokenizer(adapter, pair.ft)
        ft = replace(pair.ft, name=name, adapter=adapter)
        for known in fts:
            if ft.fingerprint == known.fingerprint or name == known.name:
                raise InputError(f"FT {name} is {known.name}, which is given already: name it once")
        fts.append(ft)
    return tuple(fts[1:])


def expect_adaptable(base: Checkpoint) -> None:
    """InputError for a base of a family whose adapters are not scored."""
    family = FAMILIES[base.architecture]
    if not family.float32_rows or family.text_half:
        raise InputError(f"adapters of {family.known_as} ({base.architecture}) are not supported: {MERGE}")


def _adapter_pair(pt: str | Path | None, ft: str, directory: Path, trust_remote_code: bool) -> ModelPair:
    named = str(pt) if pt is not None else read_json(directory / "adapter_config.json").get(BASE)
    if not named:
        raise InputError(f"the adapter {ft} does not name its base: give it as PT")
    base = _read_checkpoint("PT", str(named), trust_remote_code)
    expect_adaptable(base)
    _fetch_weights(base)
    adapter, note = resolve_adapter(ft, base)
    return ModelPair(base, replace(base, name=ft, adapter=adapter), note)


def _doubt_of_base(adapter: Adapter, base: Checkpoint) -> str:
    """What cannot be known of whether ``base`` is the model that an adapter was trained on. InputError where
    it is known to be another."""
    named = adapter.base
    if named is None or named == base.name:
        return ""
    trusted = f"PT {base.name} is taken on trust: {named}, which the adapter names as its base, "
    try:
        directory = local_path(named)
        if not directory.is_dir():
            directory = fetch(named, ["config.json", "*.safetensors"], at_hand=True)
        if (directory / "config.json").is_file() and read_json(directory / "config.json").get(QUANTIZED):
            return f"{trusted}is quantized"
        same = directory.samefile(base.directory) or _same_weights(directory, base.directory)
    except InputError:
        return f"{trusted}is not at hand"
    if not same:
        raise InputError(
            f"the adapter {adapter.name} was trained on {named}, whose weights are not those of PT "
            f"{base.name}: give {named} as PT, or leave PT out"
        )
    return ""


def _same_weights(one: Path, other: Path) -> bool:
    """Whether those tensors are equal that both have in one form."""
    a, b = weight_samples(one), weight_samples(other)
    common = [name for name in a.keys() & b.keys() if a[name].form == b[name].form]
    return bool(common) and all(a[name] == b[name] for name in common)


def _fetch_weights(checkpoint: Checkpoint) -> None:
    if not local_path(checkpoint.name).is_dir():
        fetch(checkpoint.name, [*CONFIG_FILES, "*.safetensors"], commit=checkpoint.directory.name)
    for file in weight_files(checkpoint.directory):
        read_header(file)


def expect_tokenizer(adapter: Adapter | None, ft: Checkpoint) -> None:
    """InputError for another adapter of an engine that would turn chats or text into other tokens than FT."""
    if adapter is None:
        return
    for name in TOKENIZER_FILES:
        own, used = adapter.directory / name, ft.tokenizer_directory / name
        if own.is_file() and not (used.is_file() and own.read_bytes() == used.read_bytes()):
            raise InputError(
                f"the adapter {adapter.name} brings a {name} of its own, and one engine has one tokenizer: "
                "give it an engine of its own as FT, or remove that file from it if it says nothing new"
            )


def expect_row_dtype(pair: ModelPair, row_dtype: str) -> None:
    """InputError unless rows of ``pair`` can be computed as ``row_dtype`` says."""
    if row_dtype not in ROW_DTYPES:
        raise InputError(f"row_dtype must be one of {', '.join(ROW_DTYPES)}, not {row_dtype!r}")
    if row_dtype == "float32" and not FAMILIES[pair.ft.architecture].float32_rows:
        raise InputError(
            f"{pair.ft.name} ({pair.ft.architecture}): its rows (experts, or layers of Hugging Face's) are "
            "computed in the model's dtype only: leave --row-dtype out, or score with --dtype float32"
        )


def _read_checkpoint(role: str, name: str, trust_remote_code: bool) -> Checkpoint:
    """Find the directory and check all that one model's config says by itself."""
    directory = find_model(role, name)
    if is_adapter(directory):
        raise InputError(f"{role} {name} is an adapter, not a full model: give it as FT, and its base as PT")
    if not (directory / "config.json").is_file():
        raise InputError(f"{role} {name} is not a model directory: it has no config.json")
    checkpoint = Checkpoint(name, directory.absolute(), read_json(directory / "config.json"))
    if reason := reason_against(checkpoint.config):
        raise InputError(f"{role} {name}: architecture {checkpoint.architecture} is not supported: {reason}")
    if checkpoint.config.get(QUANTIZED) or (directory / "hf_quant_config.json").is_file():
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
