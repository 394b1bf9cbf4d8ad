"""The driver with a fake engine: what goes in comes out once, in order, scored or with its error."""

import gzip
import json
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_scorer import fake_score

from tuco_vllm.corpus import chunks, run
from tuco_vllm.corpus.columns import Columns
from tuco_vllm.errors import InputError

METADATA = {
    *("tuco.schema_version", "tuco.version", "tuco.pt", "tuco.ft", "tuco.pt_fingerprint"),
    *(
        "tuco.ft_fingerprint",
        "tuco.dtype",
        "tuco.row_dtype",
        "tuco.vllm_version",
        "tuco.chat_template_sha256",
    ),
    *("tuco.template_applied", "tuco.command", "tuco.first_row", "tuco.rows", "tuco.job"),
}


def read(out: Path):
    return pq.read_table(out).to_pylist()


def test_every_row_once_in_input_order_scored_or_with_an_error(score, corpus, tmp_path):
    score(corpus, rows_per_file=20)
    rows = read(tmp_path / "out")
    assert [row["id"] for row in rows] == [f"{f}/x.jsonl:{n}" for f in "ab" for n in range(25)]
    assert [row["error"] is None for row in rows] == [n % 3 > 0 for _ in "ab" for n in range(25)]
    assert {row["error"] for row in rows if row["error"]} == {"the prompt is empty"}
    assert rows[1]["prompt"] == "a 1"
    assert [row["n"] for row in rows] == [*range(25)] * 2
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    job = json.loads((tmp_path / "out/_tuco/job.json").read_text())["job"]
    parts = [f"part-{number:08}-{job}.parquet" for number in range(4)]  # a unit never goes over a file's end
    assert names == ["_SUCCESS", "_tuco", *parts]
    metadata = [pq.read_metadata(tmp_path / "out" / part).metadata for part in parts]
    assert all({key.decode() for key in each} >= METADATA for each in metadata)
    assert [int(each[b"tuco.first_row"]) for each in metadata] == [0, 20, 25, 45]
    assert [int(each[b"tuco.rows"]) for each in metadata] == [20, 5, 20, 5]


def test_scores_are_those_of_the_tokens(score, corpus, tmp_path):
    pipeline = score(corpus)
    row = read(tmp_path / "out")[1]
    expected = fake_score(pipeline.tokenizer.encode("a 1"))
    assert (row["tuco"], row["prompt_tokens"]) == (expected.tuco, expected.num_prompt_tokens)


def test_bad_rows_cost_only_themselves(score, tmp_path):
    lines = [
        b'{"prompt": "good"}',
        b'{"prompt": ""}',
        b'{"prompt": null}',
        b'{"prompt": 3}',
        b'{"prompt": [1, 2]}',
        b'{"other": 1}',
        b'{"prompt": "broken',
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a\\u0000b"}',
        b'{"prompt": "' + b"x y " * 100 + b'"}',
        b'{"messages": [{"role": "user"}]}',
        b'{"messages": [{"role": "user", "content": "\\u2028 ok"}]}',
        b'{"messages": "no json"}',
        b'{"messages": 7, "prompt": "unused"}',
    ]
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(lines))
    score(tmp_path / "x.jsonl")
    rows = read(tmp_path / "out")
    assert [row["id"] for row in rows] == [f"x.jsonl:{n}" for n in range(len(lines))]
    errors = [(row["error"] or "").split(":")[0] for row in rows]
    assert errors == [
        "",
        "the prompt is empty",
        "the prompt is null, not a string",
        "the prompt is a number, not a string",
        "the prompt is a list, not a string",
        "the row has no column 'prompt'",
        "broken JSON",
        "invalid UTF-8 at byte 12 of the line",
        "the record holds a lone surrogate (\\ud800), which is not text",
        "",
        errors[10],
        "message 0's content is null, not a string or a list of texts",
        "",
        "the messages are not JSON",
        "the messages are not a list of objects with role and content",
    ]
    assert errors[10].startswith("prompt has 400 characters, more than the 64 tokens of the limit can hold")
    assert all((row["tuco"] is None) == (row["error"] is not None) for row in rows)
    assert rows[12]["prompt"] == "<|user|>\u2028 ok\n<|assistant|>"


def test_ids_of_the_users_own_may_repeat(score, corpus, tmp_path):
    score(corpus, columns=Columns(id="key"))
    rows = read(tmp_path / "out")
    assert {row["id"] for row in rows} == {"same"}
    assert [row["n"] for row in rows] == [*range(25)] * 2
    assert "key" not in rows[0]


def test_an_id_that_is_no_string_or_missing(score, tmp_path):
    (tmp_path / "x.jsonl").write_text(
        '{"prompt": "a", "k": 7}\n{"prompt": "a"}\n{"prompt": "a", "k": ["x", 1]}\n'
    )
    score(tmp_path / "x.jsonl", columns=Columns(id="k"))
    assert [row["id"] for row in read(tmp_path / "out")] == ["7", "x.jsonl:1", '["x", 1]']


def test_chats_in_parquet_lose_the_fields_that_other_chats_have(score, tmp_path):
    chats = [[{"role": "user", "content": "a"}], [{"role": "user", "content": "b", "name": "n"}]]
    pq.write_table(pa.table({"messages": pa.array(chats), "id": [1, 2]}), tmp_path / "x.parquet")
    score(tmp_path / "x.parquet")
    rows = read(tmp_path / "out")
    assert [row["prompt"] for row in rows] == ["<|user|>a\n<|assistant|>", "<|user|>b\n<|assistant|>"]
    assert [row["input_id"] for row in rows] == [1, 2]
    [part] = (tmp_path / "out").glob("part-*")
    metadata = pq.read_metadata(part).metadata
    assert metadata[b"tuco.template_applied"] == b"true"
    assert len(metadata[b"tuco.chat_template_sha256"]) == 64


@pytest.mark.parametrize("rows", [1, 2, 7, 10_000])
def test_chunks_of_bad_rows_only(score, tmp_path, monkeypatch, rows):
    monkeypatch.setattr(chunks, "CHUNK_ROWS", rows)
    prompts = ["", "", "", "x", "", "", "", "", "y", "z", "", *[""] * 20, "w", ""]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    score(tmp_path / "x.jsonl", rows_per_file=3)
    rows = read(tmp_path / "out")
    assert [row["prompt"] for row in rows] == prompts
    assert [row["tuco"] is not None for row in rows] == [bool(p) for p in prompts]


def test_rows_without_any_score(score, tmp_path):
    (tmp_path / "x.jsonl").write_text('{"prompt": ""}\n' * 3)
    score(tmp_path / "x.jsonl")
    assert len(read(tmp_path / "out")) == 3


def test_a_corpus_without_rows_is_a_table_without_rows(score, tmp_path):
    (tmp_path / "x.txt").write_text("")
    score(tmp_path / "x.txt")
    table = pq.read_table(tmp_path / "out")
    assert table.num_rows == 0
    assert "tuco" in table.column_names
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_limit_layers_and_prompt(score, corpus, tmp_path):
    score(corpus, limit=27, layers=False, prompt=False)
    table = pq.read_table(tmp_path / "out")
    assert table["id"].to_pylist()[-1] == "b/x.jsonl:1"
    assert table.num_rows == 27
    assert not {"prompt", "ptc_norms", "cum_ftc_norms"} & set(table.column_names)
    score(corpus, out="with-layers", prompt=False)
    names = set(pq.read_table(tmp_path / "with-layers").column_names)
    assert {"ptc_norms", "cum_ftc_norms"} < names
    assert "prompt" not in names


def test_ten_thousand_broken_rows_one_of_a_megabyte_and_an_empty_file(score, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/empty.jsonl").write_text("")
    long = json.dumps({"prompt": "x" * 2**20})
    (tmp_path / "in/x.jsonl").write_text("broken\n" * 10_000 + '{"prompt": "good"}\n' + long + "\n")
    score(tmp_path / "in")
    rows = read(tmp_path / "out")
    assert len(rows) == 10_002
    assert {row["error"].partition(":")[0] for row in rows[:10_000]} == {"broken JSON"}
    assert rows[10_000]["tuco"] is not None
    assert rows[10_001]["error"].startswith("prompt has ")
    assert len(rows[10_001]["prompt"]) == 2**20


def test_ids_that_repeat_are_reported(score, corpus, tmp_path):
    score(corpus, columns=Columns(id="key"))
    record = json.loads((tmp_path / "out/_tuco/run.json").read_text())
    assert record["duplicate_ids"] == {"ids": 1, "rows": 50, "examples": [["same", 50]]}
    score(corpus, out="own")
    assert json.loads((tmp_path / "own/_tuco/run.json").read_text())["duplicate_ids"] is None


def test_a_truncated_gz_is_refused_before_anything_is_scored(score, corpus, tmp_path):
    whole = gzip.compress((corpus / "a/x.jsonl").read_bytes() * 50)
    (tmp_path / "x.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(InputError, match=r"cannot read .*x.jsonl.gz"):
        score(tmp_path / "x.jsonl.gz")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("asked", [256, 300, 500])
def test_a_part_has_the_rows_that_were_asked_for(score, tmp_path, asked):
    (tmp_path / "x.txt").write_text("a\n" * 4200)
    score(tmp_path / "x.txt", rows_per_file=asked)
    parts = sorted((tmp_path / "out").glob("part-*"))
    assert {pq.read_metadata(part).num_rows for part in parts[:-1]} == {asked}


def test_what_lies_behind_the_limit_is_not_looked_at(score, tmp_path):
    pq.write_table(pa.table({"prompt": ["a", "b"], "n": [1, 2]}), tmp_path / "1.parquet")
    (tmp_path / "2.parquet").write_bytes(b"no Parquet")
    score(tmp_path / "1.parquet", tmp_path / "2.parquet", limit=2)
    assert [row["n"] for row in read(tmp_path / "out")] == [1, 2]


def test_a_job_ends_well_where_there_is_no_room_to_count_ids(score, corpus, tmp_path, monkeypatch, capsys):
    def no_room(parts):
        raise duckdb.OutOfMemoryException("failed to offload")

    monkeypatch.setattr(run, "find_duplicates", no_room)
    score(corpus, columns=Columns(id="key"))
    assert (tmp_path / "out/_SUCCESS").exists()
    assert "ids that repeat were not counted: failed to offload" in capsys.readouterr().err
