"""Runs of ``tuco score`` made of numbers that a test knows: parts with the real schema and metadata."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tuco_vllm import records
from tuco_vllm.score_requests import MoreScores

METADATA = {
    "schema_version": "2",
    "version": "0.0",
    "pt": "base",
    "ft": "chat",
    "pt_fingerprint": "p" * 64,
    "ft_fingerprint": "f" * 64,
    "dtype": "float32",
    "row_dtype": "float32",
    "chat_template_sha256": "t" * 64,
    "vllm_version": "0.32.0",
    "command": "tuco score in.jsonl --pt base --ft chat --out out",
}
"""What a part is begun with; ``template_applied`` and ``templated_rows`` are written at its end."""
NEW_IN_2 = ("tuco_l2", "path_tuco", "cosine", "cancellation", "cosines")


def scored_rows(tucos, *, layers=4, seed=0, **columns):
    """A row for each TuCo: norms that give it after the last layer, and an error where it is None.

    Args:
        tucos: scores; a string is an error's text.
        layers: how many there are; beta rises to TuCo in equal steps.
        seed: of lengths and norms.
        columns: more columns, a list each or one value for all.
    """
    draw = np.random.default_rng(seed)
    rows = []
    for number, tuco in enumerate(tucos):
        row = {"id": f"in:{number}", "prompt": f"prompt {number}"}
        if isinstance(tuco, str):
            row["error"] = tuco
        else:
            row |= _scores(tuco, layers, draw)
        row |= {
            name: values[number] if isinstance(values, list | np.ndarray) else values
            for name, values in columns.items()
        }
        rows.append(row)
    return rows


def _scores(tuco, layers, draw):
    total = 1000.0
    beta = np.linspace(1 / layers, 1, layers) * tuco
    ftc, ptc = beta * total, (1 - beta) * total
    row = {"prompt_tokens": int(draw.integers(5, 200)), "tuco": tuco, "preco": 1 - tuco}
    row |= {"ptc_norm": ptc[-1], "ftc_norm": ftc[-1], "beta_max": beta.max(), "tuco_l2": tuco / 2}
    row |= {"path_tuco": tuco / 3, "cosine": 0.25, "cancellation": None}
    row |= {"cum_ptc_norms": ptc, "cum_ftc_norms": ftc, "ptc_norms": ptc / 2, "ftc_norms": ftc / 2}
    return row | {"cosines": [None] + [0.5] * (layers - 1)}


def write_run(folder, rows, *, parts=2, finished=True, schema=None, row_group=64, **metadata):
    """Write rows as a run's parts. Columns that the schema lacks follow it, as a run's input columns do."""
    folder.mkdir(parents=True, exist_ok=True)
    schema = schema or schema_of(rows)
    more = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in schema.names]
    extras = [pa.field(name, pa.array([row.get(name) for row in rows]).type) for name in more]
    at_end = {"template_applied": metadata.pop("template_applied", "true")}
    at_end |= {name: metadata.pop(name) for name in ("templated_rows",) if name in metadata}
    said = {f"tuco.{name}": value for name, value in (METADATA | metadata).items()}
    whole = pa.schema([*schema, *extras], metadata=said)
    for number, chunk in enumerate(np.array_split(np.arange(len(rows)), parts)):
        table = pa.Table.from_pylist([rows[place] for place in chunk], whole)
        with pq.ParquetWriter(folder / f"part-{number:08}-job.parquet", whole) as file:
            file.write_table(table, row_group_size=row_group)
            file.add_key_value_metadata({f"tuco.{name}": value for name, value in at_end.items()})
    (folder / "_tuco").mkdir(exist_ok=True)
    counts = {"rows_committed": len(rows), "rows_total": len(rows) + (0 if finished else 5)}
    (folder / "_tuco/run.json").write_text(json.dumps({"counts": counts}))
    if finished:
        (folder / "_SUCCESS").touch()
    return folder


def schema_of(rows):
    """The schema that a run with these columns has."""
    names = {name for row in rows for name in row}
    more = MoreScores(False, "output_co" in names, "relative_reward" in names)
    return records.output_schema(responses="response_tucos" in names, more=more, several="ft" in names)


def first_schema():
    """That of runs of before schema 2."""
    return pa.schema([field for field in records.output_schema() if field.name not in NEW_IN_2])
