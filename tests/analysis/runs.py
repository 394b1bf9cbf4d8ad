"""Runs that were never scored: parts of `tuco score` with the scores, lengths and labels a test wants."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tuco_vllm.records import SUCCESS, output_schema

SAID = {
    "schema_version": "2",
    "version": "0",
    "pt": "org/base",
    "ft": "org/chat",
    "pt_fingerprint": "p" * 64,
    "ft_fingerprint": "f" * 64,
    "dtype": "bfloat16",
    "row_dtype": "float32",
    "chat_template_sha256": "c" * 64,
    "template_applied": "true",
}


def write_part(folder: Path, number: int = 0, said: dict[str, str] | None = None, **columns: Any) -> Path:
    """A part whose rows have these ``columns``; ids, lengths and errors where nothing is said of them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = len(next(iter(columns.values())))
    schema = output_schema(layers=False, responses="response_tuco" in columns)
    given = {"id": [str(n) for n in range(rows)], "prompt_tokens": np.full(rows, 10), **columns}
    arrays = {
        field.name: pa.array(given.pop(field.name), field.type)
        if field.name in given
        else pa.nulls(rows, field.type)
        for field in schema
    }
    table = pa.table({**arrays, **{name: pa.array(values) for name, values in given.items()}})
    metadata = {
        f"tuco.{name}": value for name, value in {**SAID, **(said or {})}.items() if value is not None
    }
    path = folder / f"part-{number:08}-job.parquet"
    pq.write_table(table.replace_schema_metadata(metadata), path)
    (folder / SUCCESS).touch()
    return path
