"""The driver with a fake engine: every row exactly once, whatever stops the run and wherever."""

import json
import os
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fake_scorer import FakeLLM, fake_score, write_pair

from tuco_vllm.config import resolve_pair
from tuco_vllm.corpus import publish, run
from tuco_vllm.corpus.columns import Columns
from tuco_vllm.corpus.job import JobDirectory
from tuco_vllm.corpus.run import ScoreJob, score_corpus
from tuco_vllm.errors import EngineError, InputError

METADATA = {
    *("tuco.schema_version", "tuco.version", "tuco.pt", "tuco.ft", "tuco.pt_fingerprint"),
    *("tuco.ft_fingerprint", "tuco.dtype", "tuco.vllm_version", "tuco.chat_template_sha256"),
    *("tuco.template_applied", "tuco.command"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture
def score(models, tmp_path):
    """Score a corpus into ``out`` of the test's folder; options are ScoreJob's and, in ``llm``, FakeLLM's."""
    pair = resolve_pair(*models)

    def call(*inputs, out="out", llm=None, **options):
        made = []

        def start():
            made.append(FakeLLM(*models, **(llm or {})))
            return made[-1]

        job = ScoreJob(tuple(map(str, inputs)), tmp_path / out, **options)
        try:
            score_corpus(job, pair, start)
        finally:
            assert all(each.closed for each in made)
        return made[0] if made else None

    return call


@pytest.fixture
def corpus(tmp_path):
    """Two files of one name in two folders; every third row is bad."""
    for folder in ("a", "b"):
        rows = [{"prompt": f"{folder} {n}" if n % 3 else "", "key": "same", "n": n} for n in range(25)]
        path = tmp_path / "in" / folder / "x.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "in"


def read(out: Path):
    return pq.read_table(out).to_pylist()


def snapshot(out: Path):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*") if path.is_file()}


def test_every_row_once_in_input_order_scored_or_with_an_error(score, corpus, tmp_path):
    score(corpus, rows_per_file=20)
    rows = read(tmp_path / "out")
    assert [row["id"] for row in rows] == [f"{f}/x.jsonl:{n}" for f in "ab" for n in range(25)]
    assert [row["error"] is None for row in rows] == [n % 3 > 0 for _ in "ab" for n in range(25)]
    assert {row["error"] for row in rows if row["error"]} == {"the prompt is empty"}
    assert rows[1]["prompt"] == "a 1"
    assert [row["n"] for row in rows] == [*range(25)] * 2
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    parts = ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    assert names == ["_SUCCESS", "_tuco", *parts]
    assert all(set_of_metadata(tmp_path / "out" / part) >= METADATA for part in parts)


def set_of_metadata(path):
    return {key.decode() for key in pq.read_metadata(path).metadata}


def test_scores_are_those_of_the_tokens(score, corpus, tmp_path):
    llm = score(corpus)
    row = read(tmp_path / "out")[1]
    expected = fake_score(llm.tokenizer.encode("a 1"))
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
        "the prompt holds a NUL character at position 1",
        errors[10],
        "message 0's content is null, not a string",
        "",
        "the messages are not JSON",
        "the messages are not a list of objects with role and content",
    ]
    assert errors[10].startswith("prompt has ")
    assert "the limit is 64" in errors[10]
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
    import pyarrow as pa

    chats = [[{"role": "user", "content": "a"}], [{"role": "user", "content": "b", "name": "n"}]]
    pq.write_table(pa.table({"messages": pa.array(chats), "id": [1, 2]}), tmp_path / "x.parquet")
    score(tmp_path / "x.parquet")
    rows = read(tmp_path / "out")
    assert [row["prompt"] for row in rows] == ["<|user|>a\n<|assistant|>", "<|user|>b\n<|assistant|>"]
    assert [row["input_id"] for row in rows] == [1, 2]
    metadata = pq.read_metadata(tmp_path / "out" / "part-00000.parquet").metadata
    assert metadata[b"tuco.template_applied"] == b"true"
    assert len(metadata[b"tuco.chat_template_sha256"]) == 64


@pytest.mark.parametrize("held", [1, 2, 7, 10_000])
def test_long_runs_of_bad_rows_are_not_held_back(score, tmp_path, monkeypatch, held):
    monkeypatch.setattr(run, "_ERRORS_HELD", held)
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


def test_a_finished_job_starts_no_engine_and_writes_nothing(score, corpus, tmp_path):
    score(corpus)
    before = snapshot(tmp_path / "out")
    assert score(corpus, rows_per_file=3) is None
    assert snapshot(tmp_path / "out") == before


def test_a_dead_engine_costs_what_was_in_flight_and_the_job_resumes(score, corpus, tmp_path):
    score(corpus, out="whole")
    with pytest.raises(EngineError):
        score(corpus, llm={"dies_after": 11})
    kept = read(tmp_path / "out")
    assert len(kept) >= 11
    record = json.loads((tmp_path / "out/_tuco/run.json").read_text())
    assert (record["state"], record["counts"]["rows_committed"]) == ("failed", len(kept))
    assert record["error"] == "the engine died"
    llm = score(corpus)
    assert read(tmp_path / "out") == read(tmp_path / "whole")
    assert llm.scored == 32 - 11  # nothing is scored twice
    record = json.loads((tmp_path / "out/_tuco/run.json").read_text())
    assert (record["state"], record["counts"]["rows"], record["counts"]["errors"]) == ("finished", 50, 18)
    assert record["counts"]["prompt_tokens"] == sum(r["prompt_tokens"] or 0 for r in read(tmp_path / "out"))


class Killed(BaseException):
    """The process is gone: from here on none of its calls reaches the disk."""


def kill_at(monkeypatch, step):
    """Die before the ``step``-th call that makes something durable; returns the calls made, as they grow."""
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def fake(*arguments, name=name, real=real):
            calls.append(name)
            if len(calls) > step:
                raise Killed
            return real(*arguments)

        monkeypatch.setattr(publish.os, name, fake)
    return calls


def test_killed_at_every_step_of_every_commit_and_resumed(score, corpus, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        calls = kill_at(patch, 10**9)
        score(corpus, out="whole", rows_per_file=20)
    whole = read(tmp_path / "whole")
    assert len(calls) > 20  # job.json, three parts, run.json after each, _SUCCESS: three steps a file
    for step in range(len(calls)):
        out = f"killed-{step}"
        with monkeypatch.context() as patch:
            kill_at(patch, step)
            with pytest.raises(Killed):
                score(corpus, out=out, rows_per_file=20)
        assert_nothing_half_written(tmp_path / out)
        score(corpus, out=out, rows_per_file=20)
        assert read(tmp_path / out) == whole, f"killed before step {step}"
        assert not list((tmp_path / out).glob(".part*"))


def assert_nothing_half_written(out):
    for path in out.glob("part-*"):
        assert pq.read_metadata(path).num_rows > 0
    if (out / "_SUCCESS").exists():
        assert len(read(out)) == 50


def test_resumed_with_another_size_of_parts(score, corpus, tmp_path):
    score(corpus, out="whole")
    for dies_after in (1, 5, 9):
        with pytest.raises(EngineError):
            score(corpus, llm={"dies_after": dies_after}, rows_per_file=4)
    score(corpus, rows_per_file=7)
    assert read(tmp_path / "out") == read(tmp_path / "whole")


def test_an_interruption_keeps_finished_rows(score, corpus, tmp_path, monkeypatch):
    real = FakeLLM._next

    def interrupted(self, in_flight):
        if self.scored == 9:
            raise KeyboardInterrupt
        return real(self, in_flight)

    with monkeypatch.context() as patch:
        patch.setattr(FakeLLM, "_next", interrupted)
        with pytest.raises(KeyboardInterrupt):
            score(corpus)
    assert len(read(tmp_path / "out")) >= 9
    assert json.loads((tmp_path / "out/_tuco/run.json").read_text())["state"] == "interrupted"
    assert score(corpus).scored == 32 - 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float32"}, "dtype was 'auto' and is 'float32'"),
        ({"max_model_len": 32}, "max_model_len was None and is 32"),
        ({"on_long": "truncate-left"}, "on_long was 'error'"),
        ({"limit": 3}, "limit was None and is 3"),
        ({"chat_template": "none"}, "chat_template"),
        ({"system_prompt": "be brief"}, "system_prompt was None and is 'be brief'"),
        ({"columns": Columns(id="key")}, "columns was"),
        ({"layers": False}, "layers was True and is False"),
    ],
)
def test_another_jobs_directory_is_refused_with_what_differs(score, corpus, tmp_path, change, message):
    score(corpus)
    before = snapshot(tmp_path / "out")
    with pytest.raises(InputError, match=message):
        score(corpus, **change)
    assert snapshot(tmp_path / "out") == before


def test_other_or_changed_inputs_are_another_job(score, corpus, tmp_path):
    score(corpus)
    with pytest.raises(InputError, match="it had 2 input files, now 1"):
        score(corpus / "a")
    time.sleep(0.01)
    (corpus / "b/x.jsonl").write_text('{"prompt": "changed"}\n')
    with pytest.raises(InputError, match=r"input .*b/x.jsonl has changed since"):
        score(corpus)


def test_other_models_are_another_job(score, corpus, models, tmp_path):
    score(corpus)
    other = write_pair(tmp_path / "other", template=None)
    job = ScoreJob((str(corpus),), tmp_path / "out")
    with pytest.raises(InputError, match="the FT model is another one"):
        score_corpus(job, resolve_pair(*other), lambda: FakeLLM(*other))


def test_overwrite_starts_anew_and_removes_only_what_a_run_made(score, corpus, tmp_path):
    score(corpus, rows_per_file=10)
    (tmp_path / "out/notes.txt").write_text("mine")
    (tmp_path / "out/part-of-mine.parquet").write_text("mine")
    score(corpus / "a", overwrite=True)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["_SUCCESS", "_tuco", "notes.txt", "part-00000.parquet", "part-of-mine.parquet"]
    assert pq.read_table(tmp_path / "out/part-00000.parquet").num_rows == 25


def test_overwrite_keeps_the_old_results_until_the_engine_stands(models, score, corpus, tmp_path):
    score(corpus)
    before = read(tmp_path / "out")

    def no_engine():
        raise EngineError("no memory")

    with pytest.raises(EngineError):
        score_corpus(
            ScoreJob((str(corpus),), tmp_path / "out", overwrite=True), resolve_pair(*models), no_engine
        )
    assert read(tmp_path / "out") == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_results_that_no_run_wrote_are_never_touched(score, corpus, tmp_path, overwrite):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/part-00000.parquet").write_text("precious")
    with pytest.raises(InputError, match="holds results that no tuco run wrote"):
        score(corpus, overwrite=overwrite)
    assert (tmp_path / "out/part-00000.parquet").read_text() == "precious"


def test_a_missing_part_is_noticed(score, corpus, tmp_path):
    with pytest.raises(EngineError):
        score(corpus, rows_per_file=5, llm={"dies_after": 20})
    (tmp_path / "out/part-00001.parquet").unlink()
    with pytest.raises(InputError, match=r"part-00001.parquet is missing: start anew with --overwrite"):
        score(corpus)


def test_two_runs_at_once_into_one_directory(score, corpus, tmp_path):
    directory = JobDirectory(tmp_path / "out")
    with directory.locked():
        assert f"process {os.getpid()}" in JobDirectory(tmp_path / "out").running()
        with pytest.raises(InputError, match=rf"is being written by process {os.getpid()}"):
            score(corpus)
    assert directory.running() is None
    score(corpus)


def test_an_output_that_is_a_file_or_cannot_be_made(score, corpus, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        score(corpus, out="file")
    with pytest.raises(InputError, match="cannot write to --out"):
        score(corpus, out="file/below")
    with pytest.raises(InputError, match="cannot write to --out"):
        score(corpus, out="/proc/nowhere")


def test_a_read_only_directory_is_refused_before_the_engine_starts(score, corpus, tmp_path, monkeypatch):
    def read_only(*_, **__):
        raise PermissionError(13, "Permission denied")

    # Tests may run as root, whom no mode bits stop.
    monkeypatch.setattr(Path, "mkdir", read_only)
    started = FakeLLM.started
    with pytest.raises(InputError, match=r"cannot write to --out .*: Permission denied"):
        score(corpus)
    assert FakeLLM.started == started


@pytest.mark.parametrize(
    "options",
    [{"columns": Columns(prompt="nope")}, {"chat_template": "missing.jinja"}, {"file_format": "parquet"}],
)
def test_what_can_be_refused_is_refused_before_the_engine_starts(score, corpus, tmp_path, options):
    started = FakeLLM.started
    with pytest.raises(InputError):
        score(corpus, **options)
    assert FakeLLM.started == started
    assert not (tmp_path / "out").exists()
