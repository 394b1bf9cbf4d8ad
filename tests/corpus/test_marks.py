"""Reading that begins in the middle of a file."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from file_server import file_server
from input_files import ROWS, compress, values, write_rows

from tuco_vllm.corpus import csv_text, readers
from tuco_vllm.corpus.inputs import find_inputs
from tuco_vllm.corpus.readers import Mark, RecordReader, read_records


def shown(records):
    return [(values(record), record.error, record.end) for record in records]


def check_every_start(file):
    """Reading from any mark gives what reading from the beginning gives after it; returns the records."""
    whole = shown(read_records(file))
    reader = RecordReader(file)
    marks = [Mark(number, end) for number, (*_, end) in enumerate([("", "", 0), *whole])]
    for mark in [*marks, *reversed(marks)]:
        assert shown(read_records(file, start=mark)) == whole[mark.record :]
        assert shown(reader.read(mark)) == whole[mark.record :]
    for mark in marks[:-1]:
        assert shown([next(reader.read(mark))]) == whole[mark.record :][:1]
    reader.close()
    return whole


@pytest.mark.parametrize("extension", ["", ".gz", ".zst", ".bz2"])
@pytest.mark.parametrize("file_format", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_reading_begins_at_any_record(tmp_path, file_format, extension):
    path = write_rows(tmp_path, file_format, extension)
    (file,) = find_inputs([str(path)], out=tmp_path / "out")
    assert [row for row, *_ in check_every_start(file)] == ROWS


AWKWARD = {
    "a.jsonl": b'\xef\xbb\xbf\n{"n": 1}\n \n\r\n{"n": \n["no"]\r\n{"n": "\xff"}\n\n{"n": 2}\n\n',
    "a.txt": b"\xef\xbb\xbfone\r\n\n\xff\n\rtwo\r\r\n\xe2\x80\xa8three",
    "lines.json": b'\xef\xbb\xbf\n\n{"n": 1}\n{"n": [}\n\n{"n": 2}',
    "array.json": b'\xef\xbb\xbf \n[\n{"n": ",]"} , [1, 2],"x",\n{"n": {"m": [{}, "\\""]}}\r\n ] \n',
    "one.json": b'[{"n": 1}]',
    "a.csv": b'\xef\xbb\xbf\n"a",b\r\n\n1,"two\n\n""lines"""\r3,\xff\n"5" x,6\n\r\n7\n"\r\n,\r",8\n9,"open',
    "old.csv": b'a,b\r1,"x\ry"\r\r2,z\r3,',
    "wide.csv": b'"a\nb",c\n1,2\n3,4\n',
}


@pytest.mark.parametrize("extension", ["", ".gz"])
@pytest.mark.parametrize("name", AWKWARD)
def test_reading_begins_at_any_awkward_record(tmp_path, name, extension):
    (tmp_path / f"{name}{extension}").write_bytes(compress(AWKWARD[name], extension))
    (file,) = find_inputs([str(tmp_path)], out=tmp_path / "out")
    whole = check_every_start(file)
    ends = [end for *_, end in whole]
    assert ends == sorted({*ends})
    if name != "one.json":
        assert len(whole) > 1
    if name == "old.csv":
        assert [row for row, *_ in whole] == [
            {"a": "1", "b": "x\ry"},
            {"a": "2", "b": "z"},
            {"a": "3", "b": ""},
        ]


@pytest.mark.parametrize("read_bytes", [1, 2, 3, 8])
def test_csv_lines_are_the_same_however_they_are_read(tmp_path, monkeypatch, read_bytes):
    for name in ("a.csv", "old.csv", "wide.csv"):
        (tmp_path / name).write_bytes(AWKWARD[name])
    files = find_inputs([str(tmp_path)], out=tmp_path / "out")
    expected = [shown(read_records(file)) for file in files]
    monkeypatch.setattr(csv_text, "READ", read_bytes)
    assert [check_every_start(file) for file in files] == expected


def test_reading_parquet_begins_in_any_row_group(tmp_path):
    pq.write_table(pa.table({"n": range(5000)}), tmp_path / "x.parquet", row_group_size=1500)
    (file,) = find_inputs([str(tmp_path)], out=tmp_path / "out")
    for first in (0, 1, 1023, 1024, 1499, 1500, 1501, 2999, 3000, 4999, 5000, 6000):
        records = read_records(file, start=Mark(first))
        assert [record.columns["n"].as_py() for record in records] == [*range(first, 5000)]


@pytest.mark.parametrize("extension", ["", ".gz"])
def test_a_reader_goes_on_without_opening_its_file_again(tmp_path, monkeypatch, extension):
    path = tmp_path / f"x.txt{extension}"
    path.write_bytes(compress(b"".join(b"%d\n" % n for n in range(100)), extension))
    (file,) = find_inputs([str(path)], out=tmp_path / "out")
    opened, real = [], type(file).open
    monkeypatch.setattr(type(file), "open", lambda self: opened.append(self) or real(self))
    reader = RecordReader(file)
    for first in (0, 20, 22, 60):
        offset = sum(len(f"{n}\n") for n in range(first))
        records = reader.read(Mark(first, offset))
        assert [int(next(records).columns["prompt"]) for _ in range(2)] == [first, first + 1]
        assert reader.next == first + 2
    assert len(opened) == 1
    assert next(reader.read(Mark())).columns == {"prompt": "0"}
    assert len(opened) == (2 if extension else 1)


@pytest.mark.parametrize("file_format", ["jsonl", "json", "csv", "parquet"])
def test_refused_records_are_not_parsed(tmp_path, monkeypatch, file_format):
    (file,) = find_inputs([str(write_rows(tmp_path, file_format))], out=tmp_path / "out")
    parser = {"csv": "_csv_record", "parquet": "_parquet_record"}.get(file_format, "_json_record")
    real, parsed = getattr(readers, parser), []
    monkeypatch.setattr(readers, parser, lambda *given: parsed.append(given) or real(*given))
    for start in (Mark(), Mark(1, next(read_records(file)).end)):
        parsed.clear()
        records = list(RecordReader(file).read(start, {1: "no"}))
        assert [(values(each), each.error) for each in records] == [
            *[(ROWS[0], None)][start.record :],
            ({}, "no"),
            (ROWS[2], None),
        ]
        assert len(parsed) == len(records) - 1


@pytest.mark.parametrize("manner", ["ranges", "whole", "no size"])
@pytest.mark.parametrize("name", ["rows.json", "rows.csv", "rows.csv.gz", "rows.parquet"])
def test_reading_from_a_server_begins_at_any_record(tmp_path, name, manner):
    path = write_rows(tmp_path, name.split(".")[1], "".join(Path(name).suffixes[1:]))
    with file_server() as server:
        server.files[f"/{name}"] = path.read_bytes()
        server.manner = manner
        (file,) = find_inputs([f"{server.url}/{name}"], out=tmp_path / "out")
        assert [row for row, *_ in check_every_start(file)] == ROWS
