"""A job of ten rows in four units, for tests of what lies in its directory: footers, and no scores."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq

from tuco_vllm.corpus.columns import ExtraColumn, Survey
from tuco_vllm.corpus.directory import JobDirectory
from tuco_vllm.corpus.plan import PLAN_SCHEMA, Plan
from tuco_vllm.corpus.unit import UnitDone
from tuco_vllm.records import part_name

IDENTITY = {
    "schema_version": "2",
    "pt": "pt",
    "ft": "ft",
    "dtype": "auto",
    "inputs": [["/in/x.jsonl", "jsonl", 100, 1, ""]],
}
CONTENT = Survey(10, (ExtraColumn("n", "n", pa.int64(), as_json=False),), responses=False)
UNITS = [(0, 0, 0, 3, 0, 0, []), (0, 3, 3, 3, 40, 0, []), (1, 0, 6, 3, 0, 0, []), (1, 3, 9, 1, 30, 0, [])]
PLAN = Plan(
    pa.table([pa.array(each) for each in zip(*UNITS, strict=True)], names=PLAN_SCHEMA.names).cast(PLAN_SCHEMA)
)


def part(unit, job, plan=PLAN):
    """A part's bytes, with what its footer says."""
    unit = plan.unit(unit)
    said = {"unit": unit.number, "first_row": unit.row, "rows": unit.rows}
    said |= {"errors": unit.number % 2, "prompt_tokens": 7, "set_aside": [unit.row] * (unit.number % 2)}
    metadata = {"tuco.job": job, **{f"tuco.{name}": json.dumps(value) for name, value in said.items()}}
    table = pa.table({"id": [f"x:{n}" for n in range(unit.rows)]}).replace_schema_metadata(metadata)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def put(directory, *units, job=None):
    """Do units, as workers do; returns what a driver is told."""
    job = job or directory.job_id
    for unit in units:
        directory.store.create(part_name(unit, job), part(unit, job))
    return [
        UnitDone(n, PLAN.unit(n).rows, n % 2, 7, len(part(n, job)), (PLAN.unit(n).row,) * (n % 2))
        for n in units
    ]


def begun(store, *units):
    """A job with these units done, and not logged."""
    directory = JobDirectory(store)
    with directory.epoch(0):
        directory.begin(IDENTITY, CONTENT, PLAN)
        put(directory, *units)
    return directory


def finished(store):
    directory = begun(store, 0, 1, 2, 3)
    with directory.epoch(0):
        directory.log(directory.done(PLAN).values())
        directory.finish()
    return directory
