"""Input files of every format, and what is read of them."""

import bz2
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tuco_vllm.corpus.chunks import UnitReader
from tuco_vllm.corpus.columns import Columns
from tuco_vllm.corpus.inputs import find_inputs
from tuco_vllm.corpus.plan import Plan, surveyed

ROWS = [
    {"prompt": "one", "tag": "a"},
    {"prompt": 'quoted "two",\nover lines', "tag": "NA"},
    {"prompt": "three \u2028 and \x85 are no line ends, äöü 日本", "tag": ""},
]


def compress(data: bytes, extension: str) -> bytes:
    if extension == ".zst":
        return pa.Codec("zstd").compress(data, asbytes=True)
    return {".gz": gzip.compress, ".bz2": bz2.compress}.get(extension, bytes)(data)


def write_rows(directory: Path, file_format: str, extension: str = "") -> Path:
    plain = directory / f"plain.{file_format}"
    if file_format == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), plain)
    elif file_format == "jsonl":
        plain.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), newline="")
    elif file_format == "json":
        plain.write_text(json.dumps(ROWS, ensure_ascii=False, indent=1), newline="\r\n")
    elif file_format in ("csv", "tsv"):
        mark = "," if file_format == "csv" else "\t"
        quoted = [mark.join('"' + value.replace('"', '""') + '"' for value in row.values()) for row in ROWS]
        plain.write_text("\r\n".join([f"prompt{mark}tag", *quoted]), newline="")
    path = directory / f"rows.{file_format}{extension}"
    path.write_bytes(compress(plain.read_bytes(), extension))
    return path


def values(record):
    return {k: v.as_py() if isinstance(v, pa.Scalar) else v for k, v in record.columns.items()}


class Source:
    """A corpus of one file in units of ``unit_rows``."""

    def __init__(self, path, columns=None, extras=None, unit_rows=10**6):
        self.files = find_inputs([str(path)], out=path.parent / "out")
        columns = columns or Columns()
        survey, files = surveyed(self.files, columns, mark_rows=unit_rows)
        self.plan = Plan.of(files, unit_rows, 1 << 40)
        self.reader = UnitReader(self.files, columns, survey.extras if extras is None else extras)

    def unit(self, number, **options):
        return self.reader.chunks(self.plan.unit(number), **options)

    def chunks(self):
        return [table for number in range(len(self.plan)) for table in self.unit(number)]
