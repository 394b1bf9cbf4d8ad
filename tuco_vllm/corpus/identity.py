"""What makes two runs the same job: the inputs and every setting that a row's output depends on.

Not the engine's parallelism, nor how rows are cut into files: those may change when a job is resumed.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tuco_vllm.config import ModelPair
from tuco_vllm.corpus.columns import Columns
from tuco_vllm.corpus.inputs import InputFile
from tuco_vllm.records import SCHEMA_VERSION

Identity = dict[str, Any]
"""Setting -> JSON value, by the names that people know them by."""


def job_identity(files: Sequence[InputFile], pair: ModelPair, settings: dict[str, Any]) -> Identity:
    """The identity of a job over ``files`` with ``pair``; ``settings`` are JSON values."""
    return {
        "schema_version": SCHEMA_VERSION,
        "pt": pair.pt.fingerprint,
        "ft": pair.ft.fingerprint,
        **settings,
        "inputs": [[file.path, file.format, file.size, file.mtime_ns, file.version] for file in files],
    }


def without_responses(old: Identity, schema_version: str) -> Identity:
    """The identity of a job that began before there were responses, as it would be written now."""
    columns = {**asdict(Columns()), **old.get("columns", {})}
    return {**old, "columns": columns, "trace": False, "schema_version": schema_version}


def difference(old: Identity, new: Identity) -> str | None:
    """The first thing that differs, in words; None where both are the same job."""
    for name in {**new, **old}:
        before, now = old.get(name), new.get(name)
        if before == now:
            continue
        if name == "inputs":
            return _inputs_difference(before or [], now or [])
        if name in ("pt", "ft"):
            return f"the {name.upper()} model is another one"
        return f"{name} was {before!r} and is {now!r}"
    return None


def _inputs_difference(before: list[list[Any]], now: list[list[Any]]) -> str:
    for old, new in zip(before, now, strict=False):
        if old[0] != new[0]:
            return f"its inputs were others ({old[0]}, now {new[0]})"
        if old != new:
            return f"input {old[0]} has changed since"
    return f"it had {len(before)} input files, now {len(now)}"
