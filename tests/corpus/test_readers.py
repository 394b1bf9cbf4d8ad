import bz2
import gzip
import json
import zipfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from file_server import file_server
from input_files import ROWS, compress, values, write_rows

from tuco_vllm.corpus.inputs import find_inputs
from tuco_vllm.corpus.parquet_files import parquet_layout
from tuco_vllm.corpus.readers import read_records
from tuco_vllm.errors import InputError


def read(path: Path, **options):
    (file,) = find_inputs([str(path)], out=path.parent / "out")
    return list(read_records(file, **options))


def from_bytes(directory: Path, name: str, data: bytes):
    (directory / name).write_bytes(data)
    return read(directory / name)


@pytest.mark.parametrize("extension", ["", ".gz", ".zst", ".bz2"])
@pytest.mark.parametrize("file_format", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_every_format_and_compression_gives_the_same_rows(tmp_path, file_format, extension):
    records = read(write_rows(tmp_path, file_format, extension))
    assert [values(record) for record in records] == ROWS
    assert not any(record.error for record in records)


@pytest.mark.parametrize("extension", ["", ".gz", ".zst"])
def test_txt_is_one_prompt_a_line_blank_lines_included(tmp_path, extension):
    path = tmp_path / f"rows.txt{extension}"
    path.write_bytes(compress("\ufeffone\r\n\ntwo\u2028still two\nthree".encode(), extension))
    records = read(path, prompt_column="text")
    assert [record.columns["text"] for record in records] == ["one", "", "two\u2028still two", "three"]


def test_an_extension_may_be_in_capitals(tmp_path):
    (tmp_path / "X.TXT.GZ").write_bytes(gzip.compress(b"one\n"))
    (file,) = find_inputs([str(tmp_path / "X.TXT.GZ")], "txt", out=tmp_path / "out")
    assert [record.columns for record in read_records(file)] == [{"prompt": "one"}]


@pytest.mark.parametrize("name", ["e.jsonl", "e.csv", "e.txt", "e.json", "e.tsv", "e.txt.zst", "e.csv.bz2"])
def test_an_empty_file_has_no_rows(tmp_path, name):
    assert from_bytes(tmp_path, name, b"") == []
    assert from_bytes(tmp_path, name, compress(b"", Path(name).suffix)) == []


def test_a_byte_order_mark_is_not_content(tmp_path):
    assert from_bytes(tmp_path, "b.jsonl", b'\xef\xbb\xbf{"prompt": "x"}')[0].columns == {"prompt": "x"}
    assert from_bytes(tmp_path, "b.csv", b"\xef\xbb\xbfprompt\nx\n")[0].columns == {"prompt": "x"}


def test_awkward_json_lines_cost_only_themselves(tmp_path):
    lines = [
        b'{"prompt": "good"}',
        b'{"prompt": "broken',
        b'["no", "object"]',
        b'{"prompt": "\xff\xfe", "id": 7}',
        b"\xff",
        b'{"prompt": "x", "tag": "\\ud800"}',
        b"  \t",
        b'{"prompt": "\\ud83d\\ude00", "n": NaN}',
        b"[" * 100_000,
        b'{"prompt": "last"}\r',
    ]
    records = from_bytes(tmp_path, "awkward.jsonl", b"\n".join(lines))
    errors = [(record.error or "").split(":")[0] for record in records]
    assert errors == [
        "",
        "broken JSON",
        "broken record",
        "invalid UTF-8 at byte 12 of the line",
        "invalid UTF-8 at byte 0 of the line",
        "the record holds a lone surrogate (\\ud800), which is not text",
        "",  # the blank line is no record
        "broken JSON",
        "",
    ]
    assert records[3].columns["id"] == 7  # what could be read is kept
    assert records[5].columns == {"prompt": "x", "tag": "?"}
    assert records[6].columns["prompt"] == "\U0001f600"
    assert records[8].columns == {"prompt": "last"}


def test_awkward_csv_rows_cost_only_themselves(tmp_path):
    data = (
        b'prompt,tag\ngood,1\nshort\nlong,2,3\n\xff,4\n"stray" quote,5\n\nnull\0inside,6\ngood again,7\n"open'
    )
    records = from_bytes(tmp_path, "awkward.csv", data)
    errors = [record.error for record in records]
    assert errors[0] is errors[5] is errors[6] is None
    assert errors[1] == "broken CSV: the row has 1 fields, the header 2"
    assert errors[2] == "broken CSV: the row has 3 fields, the header 2"
    assert errors[3] == "invalid UTF-8 in the row"
    assert errors[4].startswith("broken CSV: ")
    assert errors[7] == "broken CSV: unexpected end of data"
    assert records[3].columns == {"prompt": "\ufffd", "tag": "4"}
    assert records[5].columns == {"prompt": "null\0inside", "tag": "6"}
    assert len(records) == 8


@pytest.mark.parametrize("name", ["huge.jsonl", "huge.csv", "huge.txt"])
def test_a_row_of_some_megabytes(tmp_path, name):
    text = "ab " * 1_000_000
    data = {"jsonl": json.dumps({"prompt": text}), "csv": f"prompt\n{text}\n", "txt": text}[name[5:]]
    (record,) = from_bytes(tmp_path, name, data.encode())
    assert record.columns == {"prompt": text}


def test_ten_thousand_broken_rows_in_a_row(tmp_path):
    assert len(from_bytes(tmp_path, "broken.jsonl", b"{\n" * 10_000)) == 10_000


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("cut.jsonl.gz", gzip.compress(b'{"prompt": "x"}\n' * 100_000, mtime=0)[:-100]),
        ("cut.txt.zst", pa.Codec("zstd").compress(bytes(range(256)) * 100, asbytes=True)[:-20]),
        ("cut.jsonl.bz2", bz2.compress(b'{"prompt": "x"}\n' * 100_000)[:-10]),
        ("no.jsonl.gz", b"this is no gzip"),
        ("no.parquet", b"this is no Parquet"),
        ("no.parquet", b""),
        ("twice.csv", b"a,b,a\n1,2,3\n"),
    ],
)
def test_a_file_that_cannot_be_read_to_its_end_is_refused(tmp_path, name, data):
    with pytest.raises(InputError, match=rf"cannot read .*{name}"):
        from_bytes(tmp_path, name, data)


def test_parquet_with_two_columns_of_one_name_is_refused(tmp_path):
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="more than one column 'a'"):
        read(tmp_path / "t.parquet")


@pytest.fixture
def server():
    with file_server() as running:
        yield running


def find_url(url):
    (file,) = find_inputs([url], out=Path("out"))
    return file


@pytest.mark.parametrize("manner", ["ranges", "whole", "no size", "gzip"])
@pytest.mark.parametrize(
    "name", ["rows.jsonl", "rows.csv.gz", "rows.jsonl.zst", "rows.parquet", "rows.parquet.gz"]
)
def test_rows_come_from_servers_of_every_manner(tmp_path, server, name, manner):
    file_format, extension = name.split(".")[1], "".join(Path(name).suffixes[1:])
    server.files[f"/d/{name}"] = write_rows(tmp_path, file_format, extension).read_bytes()
    server.manner = manner
    file = find_url(f"{server.url}/d/{name}?signature=7")
    assert (file.name, file.format) == (name, file_format)
    assert file.size == (-1 if manner == "no size" else len(server.files[f"/d/{name}"]))
    assert [values(record) for record in read_records(file)] == ROWS
    if file_format == "parquet":
        schema, [(rows, size)] = parquet_layout(file)
        assert (schema.names, rows) == ([*ROWS[0]], len(ROWS))
        assert size > 0


@pytest.mark.parametrize("manner", ["ranges", "whole"])
def test_more_than_a_request_holds(server, manner):
    text = "ab " * 1_000_000
    server.files["/big.jsonl"] = b"".join(
        b'{"n": %d, "prompt": "%s"}\n' % (n, text.encode()) for n in range(5)
    )
    server.manner = manner
    records = list(read_records(find_url(f"{server.url}/big.jsonl")))
    assert [record.columns for record in records] == [{"n": n, "prompt": text} for n in range(5)]


def test_a_server_that_fails_while_it_is_read(server):
    server.files["/x.txt"] = b"one\n" * 1000
    file = find_url(f"{server.url}/x.txt")
    server.manner = "cut"
    with pytest.raises(InputError, match=rf"^cannot read {file.path}: "):
        list(read_records(file))
    server.manner = "ranges"
    server.files["/x.txt"] = b"one\n" * 999  # shorter, at a line's end
    with pytest.raises(InputError, match=rf"cannot read {file.path}: it ends after 3996 of its 4000 bytes"):
        list(read_records(file))
    assert file.changed() == f"input {file.path} changed while it was read: its size was 4000 and is 3996"
    del server.files["/x.txt"]
    with pytest.raises(InputError, match=rf"^no such input: {file.path}$"):
        list(read_records(file))


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.parquet", "rows.parquet.zst", "rows.csv"])
def test_rows_come_from_an_archive(tmp_path, name):
    path = write_rows(tmp_path, name.split(".")[1], "".join(Path(name).suffixes[1:]))
    with zipfile.ZipFile(tmp_path / "rows.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path, f"d/{name}")
    file = find_url(f"zip://d/{name}::{tmp_path / 'rows.zip'}")
    assert [values(record) for record in read_records(file)] == ROWS


def test_an_archive_on_a_server_that_sends_it_only_whole(tmp_path, server):
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as archive:
        archive.writestr("rows.txt", "one\ntwo\n")
    server.files["/rows.zip"] = (tmp_path / "rows.zip").read_bytes()
    server.manner = "whole"
    with pytest.raises(InputError, match="put simplecache:: before the http"):
        find_url(f"zip://rows.txt::{server.url}/rows.zip")
    file = find_url(f"zip://rows.txt::simplecache::{server.url}/rows.zip")
    assert [record.columns["prompt"] for record in read_records(file)] == ["one", "two"]


@pytest.fixture
def stored():
    fs = fsspec.filesystem("memory")
    yield lambda name, data: fs.pipe_file(f"/stored/{name}", data)
    fs.rm("/stored", recursive=True)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("cut.jsonl.gz", gzip.compress(b'{"prompt": "x"}\n' * 100_000, mtime=0)[:-100]),
        ("cut.txt.gz", gzip.compress(b"x\n" * 100, mtime=0)[:-1]),  # within its checksum
        ("cut.txt.zst", pa.Codec("zstd").compress(bytes(range(256)) * 100, asbytes=True)[:-20]),
        ("cut.parquet.gz", gzip.compress(bytes(range(256)) * 100, mtime=0)[:-20]),
        ("no.parquet", b"this is no Parquet"),
    ],
)
def test_a_url_that_cannot_be_read_to_its_end_is_refused(stored, name, data):
    stored(name, data)
    with pytest.raises(InputError, match=rf"cannot read memory://stored/{name} as ") as raised:
        list(read_records(find_url(f"memory://stored/{name}")))
    assert "\n" not in str(raised.value)


def test_compressed_parts_one_after_the_other_are_all_read(stored):
    parts = [f"{n}\n".encode() * 1000 for n in range(3)]
    stored("parts.txt.gz", b"".join(map(gzip.compress, parts)))
    stored("parts.txt.zst", b"".join(pa.Codec("zstd").compress(part, asbytes=True) for part in parts))
    for extension in ("gz", "zst"):
        records = list(read_records(find_url(f"memory://stored/parts.txt.{extension}")))
        assert [record.columns["prompt"] for record in records] == [
            *["0"] * 1000,
            *["1"] * 1000,
            *["2"] * 1000,
        ]


def test_an_error_of_the_network_comes_through_decompression(stored, monkeypatch):
    stored("rows.jsonl.gz", gzip.compress(b"{}\n"))
    file = find_url("memory://stored/rows.jsonl.gz")

    def lose(*_):
        raise ConnectionError("reset\nby peer")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFile.read", lose)
    with pytest.raises(InputError, match=r"^cannot read memory://stored/rows.jsonl.gz: reset by peer$"):
        list(read_records(file))
