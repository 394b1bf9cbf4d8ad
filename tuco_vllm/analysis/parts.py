"""A run's parts as they are read for tables and reports: one at a time, from wherever they lie."""

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch

import pyarrow as pa
import pyarrow.parquet as pq

from tuco_vllm.errors import InputError
from tuco_vllm.records import PART_GLOB
from tuco_vllm.store import Store

_NEEDED = ("id", "tuco", "error")


def part_names(store: Store) -> list[str]:
    """The parts of a run, by name, which is in input order."""
    return sorted(name for name in store.list("") if fnmatch(name, PART_GLOB))


@contextmanager
def opened_part(store: Store, name: str) -> Iterator[pq.ParquetFile]:
    """A part, to be read. Raises InputError for what is no Parquet, or no part of a ``tuco score``."""
    try:
        with store.open(name) as file, pq.ParquetFile(file) as part:
            if missing := [each for each in _NEEDED if each not in part.schema_arrow.names]:
                raise InputError(f"{store.where}/{name} is no part of a tuco score: no column {missing[0]}")
            yield part
    except (pa.ArrowException, FileNotFoundError) as error:
        said = " ".join(str(error).split())[:200]
        raise InputError(f"cannot read {store.where}/{name}: {said}") from error


def fixed_columns(schema: pa.Schema) -> list[str]:
    """The columns before the input's own, which may have any name."""
    names: list[str] = schema.names
    return names[: names.index("error") + 1]


def metadata_of(part: pq.ParquetFile) -> dict[str, str]:
    """What a part says of its run, by names without ``tuco.``; its footer has more of it than its schema."""
    said = {
        key.decode(errors="replace"): value.decode(errors="replace")
        for key, value in (part.metadata.metadata or {}).items()
    }
    return {key.removeprefix("tuco."): value for key, value in said.items() if key.startswith("tuco.")}
