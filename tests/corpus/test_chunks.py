"""Chunks: their bounds, and the input's other columns on their way through all stages."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tuco_vllm.corpus import chunks
from tuco_vllm.corpus.chunks import Source, from_bytes, to_bytes
from tuco_vllm.corpus.columns import Columns, ExtraColumn, survey
from tuco_vllm.corpus.inputs import find_inputs
from tuco_vllm.errors import InputError


@pytest.fixture
def source(tmp_path):
    def make(rows, **options):
        columns = Columns()
        (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = find_inputs([str(tmp_path / "x.jsonl")], out=tmp_path / "out")
        return Source(tuple(files), columns, survey(files, columns).extras, **options)

    return make


def test_chunks_end_after_some_rows_or_some_text(source, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 3)
    monkeypatch.setattr(chunks, "CHUNK_CHARACTERS", 100)
    rows = [{"prompt": "x"}] * 7 + [{"prompt": "y" * 250}] + [{"prompt": "z" * 60}] * 3
    tables = list(source(rows).chunks())
    assert [table.num_rows for table in tables] == [3, 3, 2, 2, 1]
    assert [p for table in tables for p in table["prompt"].to_pylist()] == [row["prompt"] for row in rows]


def test_skip_and_limit_are_rows_of_the_corpus(source):
    rows = [{"prompt": str(n)} for n in range(10)]
    (table,) = source(rows, skip=3, limit=7).chunks()
    assert table["id"].to_pylist() == [f"x.jsonl:{n}" for n in range(3, 7)]
    assert list(source(rows, skip=10).chunks()) == []


def test_a_chunk_goes_through_bytes_unchanged(source):
    rows = [{"prompt": "a", "n": 1}, {"messages": [{"role": "user", "content": "b"}], "n": None}]
    (table,) = source(rows).chunks()
    assert from_bytes(to_bytes(table)).equals(table)
    assert table["messages"].to_pylist() == [None, json.dumps(rows[1]["messages"])]


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
    made = source(rows)
    (table,) = Source(made.files, made.columns, extras).chunks()
    assert table.column_names[-3:] == ["n", "input_id", "any"]
    assert table["n"].to_pylist() == [2**60, None]
    assert table["input_id"].to_pylist() == ["mine", None]
    assert [json.loads(text) for text in table["any"].to_pylist()] == [{"ä": [1, None]}, "text"]


def test_a_value_that_no_longer_fits_says_that_the_input_changed(source):
    made = source([{"prompt": "a", "n": "text"}])
    extras = (ExtraColumn("n", "n", pa.int64(), as_json=False),)
    with pytest.raises(InputError, match="column 'n' no longer fits int64: the input changed"):
        list(Source(made.files, made.columns, extras).chunks())
