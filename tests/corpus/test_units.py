"""Units: their rows, the files that stay open for them, the careful look at rows that kill."""

import bz2
import json
import os
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from input_files import Source

from tuco_vllm.corpus.chunks import SET_ASIDE
from tuco_vllm.corpus.inputs import InputFile
from tuco_vllm.errors import InputError


@pytest.fixture
def source(tmp_path):
    """A corpus of ten rows in units of so many."""

    def make(unit_rows):
        lines = (json.dumps({"prompt": str(n)}) + "\n" for n in range(10))
        (tmp_path / "x.jsonl").write_text("".join(lines))
        return Source(tmp_path / "x.jsonl", unit_rows=unit_rows)

    return make


def ids(tables):
    return [row_id for table in tables for row_id in table["id"].to_pylist()]


def test_a_unit_is_its_rows_of_the_file(source):
    made = source(4)
    for number, rows in ((2, range(8, 10)), (0, range(4)), (1, range(4, 8)), (1, range(4, 8))):
        (table,) = made.unit(number)
        assert table["id"].to_pylist() == [f"x.jsonl:{n}" for n in rows]
        assert table["prompt"].to_pylist() == [str(n) for n in rows]
    assert [table.num_rows for table in made.unit(0, chunk_rows=3)] == [3, 1]


def write_numbers(path, rows):
    path.write_bytes(bz2.compress(b"".join(b"%d\n" % n for n in range(rows))))
    return path


@pytest.fixture
def opened(monkeypatch):
    """The files that were opened, each time."""
    files, real = [], InputFile.open
    monkeypatch.setattr(InputFile, "open", lambda self: files.append(self) or real(self))
    return files


@pytest.mark.parametrize("own", [range(10), range(1, 10, 3), [0, 9]])
def test_a_compressed_file_is_decompressed_once_however_many_its_units(tmp_path, opened, own):
    made = Source(write_numbers(tmp_path / "x.txt.bz2", 100), unit_rows=10)
    opened.clear()
    for number in own:
        (table,) = made.unit(number)
        assert table["prompt"].to_pylist() == [str(n) for n in range(10 * number, 10 * number + 10)]
    assert len(opened) == 1
    (table,) = made.unit(own[0])  # again
    assert table["prompt"][0].as_py() == str(10 * own[0])
    assert len(opened) == 2


def test_threads_that_read_units_have_a_stream_each(tmp_path, opened):
    made = Source(write_numbers(tmp_path / "x.txt.bz2", 4000), unit_rows=100)
    opened.clear()

    def unit(number):
        return [n for table in made.unit(number, chunk_rows=7) for n in table["prompt"].to_pylist()]

    with ThreadPoolExecutor(2) as threads:
        read = list(threads.map(unit, range(len(made.plan))))
    assert [n for each in read for n in each] == [str(n) for n in range(4000)]
    assert len(opened) <= 20  # two threads may change places now and then


def test_a_unit_that_nobody_reads_to_its_end_leaves_no_file_open(tmp_path, opened):
    made = Source(write_numbers(tmp_path / "x.txt.bz2", 100), unit_rows=50)
    begun = made.unit(0, chunk_rows=10)
    assert ids([next(begun)])[0] == "x.txt.bz2:0"
    begun.close()
    assert made.reader._kept == []
    assert len(ids(made.unit(0))) == 50


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.parquet"])
def test_a_careful_look_is_told_of_each_row_and_passes_over_some(tmp_path, name):
    rows = [{"prompt": str(n), "v": n} for n in range(8)]
    if name == "x.parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    elif name == "x.csv":
        (tmp_path / name).write_text("prompt,v\n" + "".join(f"{n},{n}\n" for n in range(8)))
    else:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    made, told = Source(tmp_path / name, unit_rows=4), []
    tables = made.unit(1, chunk_rows=1, before=told.append, skip={0, 2})
    for place, table in enumerate(tables):
        assert told == [*range(place + 1)]
        assert table["id"].to_pylist() == [f"{name}:{4 + place}"]
        expected = (None, None, SET_ASIDE) if place in (0, 2) else (str(4 + place), 4 + place, None)
        value = table["v"][0].as_py()
        found = (table["prompt"][0].as_py(), value and int(value), table["error"][0].as_py())
        assert found == expected
    assert told == [0, 1, 2, 3]


def test_an_input_that_changed_is_refused_after_the_unit_or_where_rows_are_missing(source, tmp_path):
    made = source(5)
    (file,) = made.files
    reading = made.unit(0, chunk_rows=2)
    next(reading)
    os.utime(file.path, ns=(1, 1))
    with pytest.raises(InputError, match=r"^input .*x.jsonl changed while it was read: its time of change"):
        list(reading)
    data = (tmp_path / "x.jsonl").read_bytes()
    for content in (data[:-5], b" " * (len(data) - 1) + b"\n"):
        (tmp_path / "x.jsonl").write_bytes(content)
        os.utime(file.path, ns=(file.mtime_ns, file.mtime_ns))
        message = "its size was" if len(content) < len(data) else "it no longer has a record 5"
        with pytest.raises(InputError, match=f"changed while it was read: {message}"):
            list(made.unit(1))
