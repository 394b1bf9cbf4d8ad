"""Chunks: their bounds, and the input's other columns on their way through all stages."""

import json
from datetime import date, datetime
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from input_files import Source

from tuco_vllm.corpus import chunks
from tuco_vllm.corpus.columns import Columns, ExtraColumn
from tuco_vllm.errors import InputError


@pytest.fixture
def source(tmp_path):
    def make(rows, **options):
        (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return Source(tmp_path / "x.jsonl", **options)

    return make


@pytest.fixture
def parquet_source(tmp_path):
    def make(columns=None, extras=None, **values):
        table = pa.table({"prompt": ["p"] * len(next(iter(values.values()))), **values})
        pq.write_table(table, tmp_path / "x.parquet")
        return Source(tmp_path / "x.parquet", columns, extras)

    return make


def beyond_python():
    """A time that Python has no value for."""
    return pa.array([10**15]).cast(pa.timestamp("ms"))


def bad_utf8():
    text = pa.py_buffer(b"a\xff")
    return pa.Array.from_buffers(pa.string(), 1, [None, pa.array([0, 2], pa.int32()).buffers()[1], text])


def test_chunks_end_after_some_rows_or_some_text(source, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 3)
    monkeypatch.setattr(chunks, "CHUNK_CHARACTERS", 100)
    rows = [{"prompt": "x"}] * 7 + [{"prompt": "y" * 250}] + [{"prompt": "z" * 60}] * 3
    tables = source(rows).chunks()
    assert [table.num_rows for table in tables] == [3, 3, 2, 2, 1]
    assert [p for table in tables for p in table["prompt"].to_pylist()] == [row["prompt"] for row in rows]


@pytest.mark.parametrize("value", ["x" * 600, [0.125] * 100, {"x" * 300: ["y" * 300]}])
def test_what_other_columns_hold_counts_towards_a_chunk(source, monkeypatch, value):
    monkeypatch.setattr(chunks, "CHUNK_CHARACTERS", 1000)
    assert [table.num_rows for table in source([{"prompt": "p", "v": value}] * 6).chunks()] == [2, 2, 2]


@pytest.mark.parametrize(
    ("value", "arrow"),
    [
        ("x" * 600, pa.string()),
        (b"x" * 600, pa.binary()),
        (b"x" * 600, pa.binary(600)),
        ("x" * 600, pa.dictionary(pa.int32(), pa.string())),
        ([1] * 75, pa.list_(pa.int64())),
        ({"a": "x" * 300, "b": ["x" * 300]}, pa.struct({"a": pa.string(), "b": pa.list_(pa.string())})),
        ([("k" * 300, "v" * 300)], pa.map_(pa.string(), pa.string())),
    ],
)
def test_what_parquet_columns_hold_counts_too(parquet_source, monkeypatch, value, arrow):
    monkeypatch.setattr(chunks, "CHUNK_CHARACTERS", 1000)
    tables = parquet_source(v=pa.array([value] * 6, arrow)).chunks()
    assert [table.num_rows for table in tables] == [2, 2, 2]


def test_a_dictionary_does_not_count_with_every_row(parquet_source, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_CHARACTERS", 1000)
    (table,) = parquet_source(v=pa.array([*"abcde", "x" * 700]).dictionary_encode()).chunks()
    assert table.num_rows == 6


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([Decimal("1.50")]), "1.50"),
        (pa.array([date(2020, 2, 3)]), "2020-02-03"),
        (pa.array([datetime(2020, 2, 3, 4, 5)], pa.timestamp("ms")), "2020-02-03 04:05:00"),
        (pa.array([bytes(range(16))], pa.uuid()), "00010203-0405-0607-0809-0a0b0c0d0e0f"),
        (pa.array(["äb".encode()]), "äb"),
        (pa.array([b"\xff\x00"]), "ff00"),
        (pa.array(["word"]).dictionary_encode(), "word"),
        (pa.array([True]), "true"),
        (pa.array([0.5]), "0.5"),
        (pa.array([[date(2020, 2, 3)]]), '["2020-02-03"]'),
    ],
)
def test_ids_of_every_type_are_text_without_quotes(parquet_source, values, expected):
    (table,) = parquet_source(Columns(id="key"), key=values).chunks()
    assert table["id"].to_pylist() == [expected]
    assert table["error"].to_pylist() == [None]


@pytest.mark.parametrize("values", [beyond_python(), pa.array([2**62]).cast(pa.duration("s")), bad_utf8()])
def test_an_id_that_python_has_no_value_for_costs_its_row(parquet_source, values):
    (table,) = parquet_source(Columns(id="key"), key=values).chunks()
    assert table["id"].to_pylist() == ["x.parquet:0"]
    assert table["error"][0].as_py().startswith("unreadable value: ")


def test_values_that_python_has_none_for_keep_their_type_or_are_shown_in_json(parquet_source):
    values = {
        "time": beyond_python(),
        "list": pa.ListArray.from_arrays([0, 1], beyond_python()),
        "struct": pa.StructArray.from_arrays([beyond_python(), pa.array(["other"])], ["when", "what"]),
        "text": bad_utf8(),
        "bytes": pa.array([b"a"]),
    }
    (table,) = parquet_source(**values).chunks()
    assert table["time"].combine_chunks() == values["time"]
    extras = tuple(ExtraColumn(name, name, pa.string(), as_json=True) for name in values)
    (table,) = parquet_source(extras=extras, **values).chunks()
    shown = {name: json.loads(table[name][0].as_py()) for name in values}
    out = "<value out of range: 1000000000000000>"
    assert out in shown["struct"]
    assert "other" in shown.pop("struct")
    assert shown == {"time": out, "list": f"[{out}]", "text": "a\ufffd", "bytes": "a"}


@pytest.mark.parametrize("note", ["", "\\u00e4"])
def test_how_deep_json_may_nest_does_not_depend_on_who_reads_it(tmp_path, note):
    depths = [498, 499, 500, 900, 960, 970, 980, 985, 990, 10_000]
    lines = [f'{{"prompt": "{note}", "v": {"[" * n + "]" * n}}}' for n in depths]
    lines += ['{"prompt": "' + "[{" * 1000 + '"}', '{"prompt": "", "v": [' + "[{}]," * 1000 + "{}]}"]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    (table,) = Source(tmp_path / "x.jsonl", extras=()).chunks()
    too_deep = "broken JSON: it nests more than 500 levels deep"
    assert table["error"].to_pylist() == [None, None, *[too_deep] * 8, None, None]


def test_messages_that_nest_too_deep_cost_their_row(tmp_path, score):
    deep = "[" * 990 + "]" * 990
    (tmp_path / "x.csv").write_text(f'messages\n"[{{""role"": ""user"", ""content"": {deep}}}]"\n')
    score(tmp_path / "x.csv")
    (out,) = pq.read_table(tmp_path / "out").to_pylist()
    assert out["error"] == "the messages are not JSON: it nests more than 500 levels deep"


@pytest.mark.parametrize("levels", [50, 70, 490])
def test_one_row_that_nests_deep_makes_its_column_json(tmp_path, score, levels):
    deep = "[" * levels + "]" * levels
    (tmp_path / "x.jsonl").write_text(f'{{"prompt": "a", "v": {deep}}}\n{{"prompt": "b"}}\n')
    score(tmp_path / "x.jsonl")
    assert pq.read_table(tmp_path / "out")["v"].to_pylist() == [deep, None]


def test_chats_and_responses_are_json_text(source):
    chat = [{"role": "user", "content": "b"}]
    (table,) = source([{"prompt": "a", "response": "r"}, {"messages": chat, "response": [7]}]).chunks()
    assert table["messages"].to_pylist() == [None, json.dumps(chat)]
    assert table["response"].to_pylist() == ['"r"', "[7]"]


def test_input_columns_may_have_the_names_that_chunks_use_themselves(score, tmp_path):
    row = {"text": "a b", "messages": "m", "token_ids": [7], "templated": "t", "error": "e", "first": 1.5}
    columns = Columns(prompt="text", messages="chat")
    (tmp_path / "y.jsonl").write_text(json.dumps({**row, "chat": None}) + "\n")
    score(tmp_path / "y.jsonl", columns=columns)
    (out,) = pq.read_table(tmp_path / "out").to_pylist()
    assert out["error"] is None
    assert out["tuco"] is not None
    passed = {name: out[name] for name in ("messages", "token_ids", "templated", "input_error", "first")}
    assert passed == {"messages": "m", "token_ids": [7], "templated": "t", "input_error": "e", "first": 1.5}


def test_values_keep_their_types_and_become_json_where_told(source):
    extras = (
        ExtraColumn("n", "n", pa.int64(), as_json=False),
        ExtraColumn("id", "input_id", pa.string(), as_json=False),
        ExtraColumn("any", "any", pa.string(), as_json=True),
    )
    rows = [
        {"prompt": "a", "n": 2**60, "id": "mine", "any": {"ä": [1, None]}},
        {"prompt": "b", "any": "text"},
    ]
    (table,) = source(rows, extras=extras).chunks()
    assert table.column_names[-3:] == ["n", "input_id", "any"]
    assert table["n"].to_pylist() == [2**60, None]
    assert table["input_id"].to_pylist() == ["mine", None]
    assert [json.loads(text) for text in table["any"].to_pylist()] == [{"ä": [1, None]}, "text"]


def test_a_value_that_no_longer_fits_says_that_the_input_changed(source):
    extras = (ExtraColumn("n", "n", pa.int64(), as_json=False),)
    with pytest.raises(InputError, match="column 'n' no longer fits int64: the input changed"):
        source([{"prompt": "a", "n": "text"}], extras=extras).chunks()
