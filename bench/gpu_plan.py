"""What gpu.py measures in which order, which processes live at the same time, and when time is up.

Ten minutes do not hold everything, so cells are in order of importance and what is last falls off. Starting
an engine of an 8B model takes a minute or more, most of it torch.compile on one core: so all engines that fit
on the device start together, for as many of the next cells as they can serve.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gpu_shapes import BYTES, kv_bytes_per_token, parameters, shape_of
from models import Shape


class Role(NamedTuple):
    """What one process holds on the device: ``layers`` of so many models, so many ``ends`` (embeddings and
    heads), keys and values of so many models, and bytes more (contexts, activations, graphs)."""

    layers: int = 0
    ends: int = 0
    streams: int = 0
    other: int = 3 << 30


ROLES = {
    "machine": Role(other=4 << 30),
    "kernels": Role(other=2 << 30),
    "scoring stock": Role(1, 1, 1),
    "scoring tuco": Role(2, 1, 2),
    "two passes": Role(2, 1, 2),
    "hugging face": Role(2, 2, other=10 << 30),
    "generating stock": Role(1, 2, 1),
    "generating tuco": Role(2, 2, 2),
}
Key = tuple[str, str]
"""(role, shape): what tells processes apart."""

SCORING = ("scoring stock", "scoring tuco")
GENERATING = ("generating stock", "generating tuco")
REFERENCES = ("two passes", "hugging face")


class Sizes(NamedTuple):
    """How much is measured at once."""

    lengths: tuple[int, ...]
    """Tokens a prompt, scoring; the first is the cell that the others are compared by."""
    turn_tokens: int
    """Tokens of a scoring turn."""
    step_tokens: int
    """max_num_batched_tokens of every engine, and a Hugging Face batch."""
    batches: tuple[int, ...]
    """Requests at once, generating."""
    prompt: int
    output: int
    warm_output: int
    alphas: tuple[int, ...]
    squares: tuple[int, ...]
    """Sides of the machine's matrix products."""
    copy_bytes: int
    kernel_rows: tuple[int, ...]

    def max_model_len(self) -> int:
        return max(*self.lengths, self.prompt + self.output) + 64

    def kv_tokens(self, role: str, shape: Shape) -> int:
        """Tokens whose keys and values an engine has room for: two steps', or a batch's, and a prompt's."""
        if role in GENERATING:
            batch = max(self.batches_of(shape))
            return batch * (self.prompt + self.output + 16) + self.max_model_len()
        return 2 * self.step_tokens + self.max_model_len()

    def batches_of(self, shape: Shape) -> tuple[int, ...]:
        """Without grouped heads a large batch's cache has no room beside a pair: the smallest only."""
        return self.batches if shape.kv_heads < shape.heads else (min(self.batches),)


FULL = Sizes(
    lengths=(512, 128, 2048),
    turn_tokens=65536,
    step_tokens=8192,
    batches=(256, 64),
    prompt=64,
    output=128,
    warm_output=8,
    alphas=(1, 8, 64, 256),
    squares=(4096, 8192, 16384),
    copy_bytes=1 << 30,
    kernel_rows=(2048, 8192, 16384),
)
SMOKE = Sizes(
    lengths=(32, 16, 64),
    turn_tokens=256,
    step_tokens=128,
    batches=(8, 4),
    prompt=8,
    output=8,
    warm_output=2,
    alphas=(1, 4, 8),
    squares=(256, 512),
    copy_bytes=1 << 24,
    kernel_rows=(16,),
)


class Cell(NamedTuple):
    """One thing to measure, and the roles that it needs alive."""

    kind: str
    shape: str
    size: int
    roles: tuple[str, ...]

    def __str__(self) -> str:
        unit = {"generation": "at once", "profile generation": "at once"}.get(self.kind, "tokens")
        size = f" {self.size} {unit}" if self.size else ""
        return " ".join(part for part in (self.shape, self.kind) if part) + size

    def members(self) -> list[Key]:
        """(role, shape) of the processes."""
        return [(role, self.shape) for role in self.roles]


KINDS = ("machine", "scoring", "generation", "memory", "profile", "references", "kernels")


def cells(configs: dict[str, dict[str, Any]], sizes: Sizes, only: Sequence[str] = KINDS) -> list[Cell]:
    """All cells in order of importance. A profile needs living engines, which cost more than itself: it
    comes with its shape's engines."""
    ordered: list[Cell] = []
    later: list[Cell] = []  # generation whose engines do not fit beside those that score, or matter less
    if {"machine", "scoring", "references"} & {*only}:
        ordered.append(Cell("machine", "", 0, ("machine",)))  # what MFU is a fraction of
    for place, (name, config) in enumerate(configs.items()):
        shape, first = shape_of(config), not place
        generation = [Cell("generation", name, batch, GENERATING) for batch in sizes.batches_of(shape)]
        together = first and _grouped(config)
        ordered += _engines_of(name, sizes, generation if together else [], first)
        later += [] if together else generation
        references = Cell("references", name, sizes.lengths[0], SCORING + _references(config))
        if first:
            ordered += [references, Cell("kernels", "", 0, ("kernels",))]
        else:
            later.insert(place - 1, references)
    return [cell for cell in ordered + later if cell.kind.split()[0] in only or cell.kind == "machine"]


def _grouped(config: dict[str, Any]) -> bool:
    return config["num_key_value_heads"] < config["num_attention_heads"]


def _references(config: dict[str, Any]) -> tuple[str, ...]:
    """The two-pass model is Llama's only, and without grouped heads its cache has no room beside the rest."""
    return REFERENCES if config["model_type"] == "llama" and _grouped(config) else REFERENCES[1:]


def _engines_of(name: str, sizes: Sizes, generation: list[Cell], first: bool) -> Iterator[Cell]:
    """What the engines serve that a shape has alive at once, generating ones among them or not."""
    yield Cell("scoring", name, sizes.lengths[0], SCORING)
    yield from generation
    for length in sizes.lengths[1:]:
        yield Cell("scoring", name, length, SCORING)
    yield Cell("memory", name, 0, SCORING + GENERATING if generation else SCORING)
    if first:
        yield Cell("profile", name, sizes.lengths[0], SCORING)
    if generation:
        yield Cell("profile generation", name, min(sizes.batches), GENERATING)


def device_bytes(role: str, config: dict[str, Any] | None, sizes: Sizes) -> int:
    """What a process of a role will hold on the device, about."""
    held = ROLES[role]
    if config is None:
        return held.other
    size, shape = parameters(config), shape_of(config)
    weights = BYTES * (held.layers * size["layers"] + held.ends * size["embedding"])
    cache = sizes.kv_tokens(role, shape) * kv_bytes_per_token(shape, held.streams)
    return weights + cache + held.other


def crew(
    left: Sequence[Cell],
    configs: dict[str, dict[str, Any]],
    sizes: Sizes,
    room: int,
    living: Sequence[Key] = (),
) -> list[Key]:
    """The (role, shape) that are to live now: those of the next cells, as many as the device has room for,
    and then those living that a later cell needs."""

    def held(keys: Sequence[Key]) -> int:
        return sum(device_bytes(role, configs.get(shape), sizes) for role, shape in keys)

    wanted: list[Key] = []
    for place, cell in enumerate(left):
        more = [*dict.fromkeys([*wanted, *cell.members()])]
        if place and held(more) > room:
            break
        wanted = more
    needed = {key for cell in left for key in cell.members()}
    for key in living:
        if key in needed and key not in wanted and held([*wanted, key]) <= room:
            wanted.append(key)
    return wanted


class OutOfTime(Exception):
    """The deadline has passed."""


class Deadline:
    """Minutes from now."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    def left(self) -> float:
        """Seconds, negative once it has passed."""
        return self._end - time.monotonic()

    def check(self, seconds: float = 0.0) -> None:
        """Raise OutOfTime unless so many seconds are left."""
        if self.left() < seconds:
            raise OutOfTime
