"""What ``tuco report`` takes, in time and memory, of many rows.

    python bench/report.py                     # 10 million rows with norms of 32 layers: 7 GB on disk
    python bench/report.py --rows 100000 --layers 8

The rows are made up: eight groups of unequal size, TuCo planted by group and length, norms that add up to it,
a handful of errors. Only reading and reporting are timed, in a process of its own; memory is that process's
peak. How long the bare reading of the same columns takes (pyarrow, one thread) stands beside it: a report
cannot be faster. Appends one record to ``bench/results/report.jsonl``.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import provenance
import pyarrow as pa
import pyarrow.parquet as pq

from tuco_vllm.records import LAYERS, SCALARS, output_schema

PART_ROWS, ROW_GROUP = 100_000, 4096
GROUPS = ("web text", "chat", "harmful", "attacked", "japanese", "code", "poem", "rare")
SHARES = (0.4, 0.2, 0.1, 0.1, 0.08, 0.06, 0.05, 0.01)


def write_part(file: Path, first: int, rows: int, layers: int) -> None:
    """Rows ``first`` to ``first + rows`` of the made-up run."""
    draw = np.random.default_rng(first)
    group = draw.choice(len(GROUPS), rows, p=SHARES)
    tokens = draw.integers(5, 2000, rows)
    tuco = np.clip(draw.normal(0.3 + 0.04 * group - tokens / 40_000, 0.06), 0, 1)
    failed = draw.random(rows) < 1e-4
    columns: dict[str, Any] = {
        "id": pa.array([f"in.jsonl:{number}" for number in range(first, first + rows)]),
        "prompt": pa.array([f"a prompt that is made up, number {number}" for number in range(rows)]),
        "prompt_tokens": pa.array(tokens, pa.int32(), mask=failed),
        **{name: pa.array(tuco, mask=failed) for name in SCALARS},
    }
    if layers:
        depth = np.linspace(1 / layers, 1, layers)
        values = (tuco[:, None] * depth * 900 + draw.random((rows, layers))).astype(np.float32)
        lists = pa.ListArray.from_arrays(
            pa.array(np.arange(rows + 1, dtype=np.int32) * layers), pa.array(values.ravel())
        )
        nothing = pa.nulls(rows, lists.type)
        columns |= {name: pa.compute.if_else(pa.array(failed), nothing, lists) for name in LAYERS}
    columns["error"] = pa.array(
        np.where(failed, "prompt has 9999 tokens, the limit is 4096", None), pa.string()
    )
    columns["group"] = pa.DictionaryArray.from_arrays(pa.array(group, pa.int32()), list(GROUPS)).cast(
        "string"
    )
    columns["shots"] = pa.array(2 ** draw.integers(0, 8, rows))
    schema = output_schema(layers=layers > 0)
    extras = [pa.field("group", pa.string()), pa.field("shots", pa.int64())]
    said = {"tuco.dtype": "float32", "tuco.row_dtype": "float32", "tuco.ft": "made up"}
    table = pa.table(columns).select([*schema.names, "group", "shots"])
    pq.write_table(
        table.cast(pa.schema([*schema, *extras], metadata=said)),
        file,
        compression="zstd",
        row_group_size=ROW_GROUP,
    )


def write_run(folder: Path, rows: int, layers: int) -> int:
    """All parts. Returns their bytes."""
    for number, first in enumerate(range(0, rows, PART_ROWS)):
        write_part(folder / f"part-{number:08}-bench.parquet", first, min(PART_ROWS, rows - first), layers)
    (folder / "_SUCCESS").touch()
    return sum(path.stat().st_size for path in folder.iterdir())


def bare_reading(folder: Path, layers: int) -> float:
    """Seconds in which pyarrow decodes what a report reads."""
    columns = ["id", "error", "prompt_tokens", *SCALARS, "group", "shots", *(LAYERS if layers else ())]
    began = time.monotonic()
    for path in sorted(folder.glob("part-*.parquet")):
        with pq.ParquetFile(path) as part:
            for _ in part.iter_batches(8192, columns=columns, use_threads=False):
                pass
    return time.monotonic() - began


def timed_report(folder: Path, out: Path) -> tuple[float, float]:
    """Seconds and peak MB of ``tuco report`` in a process of its own."""
    command = [sys.executable, "-m", "tuco_vllm", "report", str(folder), "--by", "shots", "--out", str(out)]
    began = time.monotonic()
    subprocess.run(command, check=True)
    return time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--layers", type=int, default=32, help="0: a run with --no-layers")
    parser.add_argument("--dry", action="store_true", help="record nothing")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    origin = provenance.provenance()
    with tempfile.TemporaryDirectory(prefix="tuco-bench-") as scratch:
        folder = Path(scratch, "run")
        folder.mkdir()
        size = write_run(folder, options.rows, options.layers)
        bare = bare_reading(folder, options.layers)
        seconds, megabytes = timed_report(folder, Path(scratch, "report.html"))
        tables = Path(scratch, "report-tables").iterdir()
        record = {
            **origin,
            "rows": options.rows,
            "layers": options.layers,
            "parquet_MB": round(size / 1e6, 1),
            "report_seconds": round(seconds, 2),
            "rows_per_second": round(options.rows / seconds),
            "bare_reading_seconds": round(bare, 2),
            "peak_MB": round(megabytes, 1),
            "html_MB": round(Path(scratch, "report.html").stat().st_size / 1e6, 2),
            "csv_MB": round(sum(path.stat().st_size for path in tables) / 1e6, 2),
        }
    print(json.dumps(record))
    if not options.dry:
        provenance.append("report", record)


if __name__ == "__main__":
    main()
