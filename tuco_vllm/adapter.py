"""A PEFT LoRA adapter as it lies on disk, and every check that can be made before weights load.

FT is then its base with W + s B A in place of some weights W. Reads JSON and headers only: neither torch nor
vllm. Whatever is wrong is an ``InputError`` of one line that names the mend.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from tuco_vllm.checkpoint_files import TOKENIZER_FILES, read_header, read_json
from tuco_vllm.errors import InputError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

BASE = "base_model_name_or_path"
"""Under which key an adapter names the model that it was trained on."""

Shape = tuple[int, ...]

MERGE = "merge it into its base (peft: merge_and_unload, then save_pretrained) and give the merged model"
_TENSOR = re.compile(
    r"^(?:base_model\.model\.)?(?P<module>.+)\.lora_(?:(?P<side>[AB])\.weight|embedding_(?P<embeds>[AB]))$"
)

_BASE_COPY = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+)\.base_layer\.weight$")

_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""``init_lora_weights`` that leave the base as it is; the others (PiSSA, OLoRA, CorDA, LoftQ) move it."""

_REFUSED = {
    "use_dora": "it is a DoRA, whose weights are no base plus a product",
    "modules_to_save": "it brings whole modules of its own",
    "trainable_token_indices": "it has trained single tokens' embeddings",
    "lora_bias": "it has biases of its own",
    "target_parameters": "it adapts experts' joined parameters",
    "layer_replication": "it repeats layers of its base",
    "alora_invocation_tokens": "it acts from certain tokens on only (aLoRA)",
    "use_qalora": "it is a QALoRA",
    "use_bdlora": "it is a block-diagonal LoRA",
    "kasa_config": "it is a KaSA, which changes its base's weights",
    "monteclora_config": "it is a MonteCLoRA",
    "arrow_config": "it routes between several adapters (Arrow)",
    "fan_in_fan_out": "its base keeps weights the other way round (fan_in_fan_out)",
}
"""Keys of adapter_config.json that, if they say anything, rule an adapter out, each with the reason."""


class Half(NamedTuple):
    """What one of its tensors is: A or B of a module."""

    module: str
    """By its name in the base's checkpoint."""
    side: str


@dataclass(frozen=True)
class Adapter:
    """One adapter. ``name`` is what the caller gave, ``directory`` the absolute path of its files, ``config``
    the contents of its adapter_config.json."""

    name: str
    directory: Path
    config: dict[str, Any] = field(repr=False, compare=False)

    @property
    def base(self) -> str | None:
        """The model that it says it was trained on."""
        stated = self.config.get(BASE)
        return stated if isinstance(stated, str) and stated else None

    @cached_property
    def tensors(self) -> dict[str, Shape]:
        """Shapes of its tensors, by the header of its file."""
        return shapes_of(self.directory / WEIGHTS)

    @property
    def rank(self) -> int:
        """The largest of its ranks, also of those that its config states of modules it does not have: vLLM
        makes room for them."""
        stated = [self.config["r"], *(self.config.get("rank_pattern") or {}).values()]
        return int(max(stated))

    def adapts(self, module: str) -> bool:
        """Whether it changes a module of this name, "embed_tokens" or "lm_head"."""
        halves = (self.half_of(name) for name in self.tensors)
        return any(half and half.module.split(".")[-1] == module for half in halves)

    @staticmethod
    def half_of(name: str) -> Half | None:
        """What a tensor of it is; None for what is no part of the sum, such as a copy of the base's."""
        found = _TENSOR.match(name)
        return Half(found["module"], found["side"] or found["embeds"]) if found else None

    def rank_of(self, module: str) -> int:
        """The rank that PEFT gives a module."""
        return int(self._stated("r", "rank_pattern", module))

    def scale(self, module: str) -> float:
        """s, by which B A is multiplied: alpha over the rank or, with rsLoRA, over its root."""
        rank = self.rank_of(module)
        alpha = float(self._stated("lora_alpha", "alpha_pattern", module))
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _stated(self, key: str, patterns: str, module: str) -> Any:
        """By the first pattern that matches the end of a module's name."""
        for pattern, value in (self.config.get(patterns) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        return self.config[key]

    def summary(self) -> list[str]:
        """Lines for people: what of its base it changes."""
        halves = [half for half in map(self.half_of, self.tensors) if half and half.side == "A"]
        kinds = sorted({half.module.split(".")[-1] for half in halves})
        return [
            f"FT is PT under the adapter {self.name}, of rank {self.rank}: {len(halves)} weights changed",
            f"  {', '.join(kinds)}",
        ]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over its config, tensors and tokenizer."""
        digest = hashlib.sha256()
        for name in (CONFIG, WEIGHTS, *TOKENIZER_FILES):
            if (self.directory / name).is_file():
                digest.update(f"{name}\0".encode() + (self.directory / name).read_bytes())
        return digest.hexdigest()


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter; a config.json beside it is often its base's."""
    return (directory / CONFIG).is_file()


def read_adapter(name: str, directory: Path) -> Adapter:
    """The adapter in a directory. InputError for one whose sum with its base is more than LoRA's."""
    adapter = Adapter(name, directory.absolute(), read_json(directory / CONFIG))
    config = adapter.config
    kind = str(config.get("peft_type", "(none stated)")).upper()
    if kind != "LORA":
        raise InputError(f"FT {name} is an adapter of PEFT's kind {kind}, not LORA: {MERGE}")
    reasons = [reason for key, reason in _REFUSED.items() if config.get(key)]
    if config.get("bias") not in (None, "none"):
        reasons.append(f"it has trained biases (bias is {config['bias']!r})")
    if (start := config.get("init_lora_weights", True)) not in _PLAIN_STARTS and start is not None:
        reasons.append(f"it was started by {start!r}, which moves the base's weights")
    if reasons:
        raise InputError(f"the adapter {name} is not supported: {reasons[0]}; {MERGE}")
    if not config.get("target_modules"):
        raise InputError(f"{directory / CONFIG} has no target_modules: fetch the adapter again")
    for key in ("r", "lora_alpha"):
        if isinstance(config.get(key), bool) or not isinstance(config.get(key), int | float):
            raise InputError(f"{directory / CONFIG} has {key} {config.get(key)!r}: fetch the adapter again")
    for whole in ("model.safetensors", "model.safetensors.index.json"):
        if (directory / whole).is_file():
            raise InputError(f"{name} is an adapter and, by its {whole}, a whole model: part the two")
    if not (directory / WEIGHTS).is_file():
        raise InputError(f"the adapter {name} has no {WEIGHTS}: save it with peft's save_pretrained")
    return adapter


def expect_fit(adapter: Adapter, base: str, shapes: Mapping[str, Shape]) -> None:
    """InputError unless every tensor of an adapter belongs to a weight of its base, ``shapes`` by name."""

    def weight(module: str) -> Shape | None:
        names = [f"{module}.weight", f"{module.removeprefix('model.')}.weight"]
        if module == "lm_head":  # of a head that is the embedding
            names += ["model.embed_tokens.weight", "embed_tokens.weight"]
        return next((shapes[name] for name in names if name in shapes), None)

    halves: dict[str, dict[str, Shape]] = {}
    for name, shape in adapter.tensors.items():
        half, copy = adapter.half_of(name), _BASE_COPY.match(name)
        if copy and weight(copy["module"]) == shape:
            continue  # PEFT saves the embedding too where that is adapted
        if half is None:
            raise InputError(
                f"the adapter {adapter.name} has a tensor {name}, which is no part of a LoRA: {MERGE}"
            )
        halves.setdefault(half.module, {})[half.side] = shape
    if not halves:
        raise InputError(
            f"the adapter {adapter.name} has no LoRA tensors: save it with peft's save_pretrained"
        )
    for module, parts in halves.items():
        own, embeds = weight(module), module.endswith("embed_tokens")
        rank = adapter.rank_of(module)
        outputs, inputs = (own or (0, 0))[::-1] if embeds else own or (0, 0)
        if own is None or parts != {"A": (rank, inputs), "B": (outputs, rank)}:
            raise InputError(
                f"the adapter {adapter.name} does not fit {base}: {module} is {own or 'not there'}, and its "
                f"halves are {parts} at rank {rank}; give the model that it was trained on as PT"
            )


def shapes_of(file: Path) -> dict[str, Shape]:
    """Of a safetensors file's tensors, by name."""
    header = json.loads(read_header(file)[0])
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
