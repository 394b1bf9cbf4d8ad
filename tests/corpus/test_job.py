"""Whose directory it is: finished, another job's, another program's, in use, or not to be written."""

import json
import os
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fake_scorer import LocalWorkers, write_pair

from tuco_vllm.config import resolve_pair
from tuco_vllm.corpus import run
from tuco_vllm.corpus.columns import Columns
from tuco_vllm.corpus.directory import JobDirectory
from tuco_vllm.corpus.job import ScoreJob
from tuco_vllm.corpus.run import score_corpus
from tuco_vllm.errors import EngineError, InputError
from tuco_vllm.store import store_at


def read(out: Path):
    return pq.read_table(out).to_pylist()


def snapshot(out: Path):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*") if path.is_file()}


def test_a_finished_job_starts_no_engine_and_writes_nothing(score, corpus, tmp_path):
    score(corpus)
    before = snapshot(tmp_path / "out")
    assert score(corpus, rows_per_file=3) is None
    assert snapshot(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float32"}, "dtype was 'auto' and is 'float32'"),
        ({"row_dtype": "model"}, "row_dtype was 'auto' and is 'model'"),
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


def test_a_run_of_schema_1_is_read_if_it_is_finished(score, corpus, tmp_path):
    score(corpus)
    job, out = tmp_path / "out" / "_tuco" / "job.json", tmp_path / "out"
    newer = {"job", "units", "content"}
    said = {name: value for name, value in json.loads(job.read_text()).items() if name not in newer}
    job.write_text(json.dumps(said | {"schema_version": "1"}))
    for number, part in enumerate(sorted(out.glob("part-*"))):
        table = pq.read_table(part)
        newer = ["tuco_l2", "path_tuco", "cosine", "cancellation", "cosines"]
        pq.write_table(table.drop_columns(newer), out / f"part-{number:05}.parquet")
        part.unlink()
    before = snapshot(out)
    assert score(corpus) is None
    assert snapshot(out) == before
    with pytest.raises(InputError, match="another job"):
        score(corpus, dtype="float32")
    (out / "_SUCCESS").unlink()
    with pytest.raises(InputError, match=r"half-done run of an earlier version.*--overwrite"):
        score(corpus)
    score(corpus, overwrite=True)
    assert "cosines" in read(out)[0]


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
    job = ScoreJob((str(corpus),), str(tmp_path / "out"))
    with pytest.raises(InputError, match="the FT model is another one"):
        score_corpus(job, resolve_pair(*other), lambda _: LocalWorkers(job, other[1]))


def test_overwrite_starts_anew_and_removes_only_what_a_run_made(score, corpus, tmp_path):
    score(corpus, rows_per_file=10)
    (tmp_path / "out/notes.txt").write_text("mine")
    score(corpus / "a", overwrite=True)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names[:3] == ["_SUCCESS", "_tuco", "notes.txt"]
    assert pq.read_table(tmp_path / "out" / names[3]).num_rows == 25
    assert len(names) == 4
    (tmp_path / "out/part-of-mine.parquet").write_text("mine")
    with pytest.raises(InputError, match="that no tuco run wrote"):  # readers would take it for one
        score(corpus / "a", overwrite=True)


def test_overwrite_keeps_the_old_results_until_engines_have_started(score, corpus, tmp_path, monkeypatch):
    score(corpus)
    before = read(tmp_path / "out")

    def no_memory(self):
        raise EngineError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(LocalWorkers, "facts", no_memory)
        with pytest.raises(EngineError):
            score(corpus, overwrite=True)
    assert read(tmp_path / "out") == before
    assert (tmp_path / "out/_SUCCESS").exists()


def test_overwrite_removes_what_an_older_version_made(score, corpus, tmp_path):
    out = tmp_path / "out"
    (out / "_tuco").mkdir(parents=True)
    (out / "_tuco/job.json").write_text('{"schema_version": "2"}')
    for number in range(2):
        (out / f"part-{number:05}.parquet").write_bytes(b"")
    score(corpus, overwrite=True)
    assert len(read(out)) == 50
    assert len(list(out.glob("part-*"))) == 1


@pytest.mark.parametrize("overwrite", [False, True])
def test_results_that_no_run_wrote_are_never_touched(score, corpus, tmp_path, overwrite):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/part-00000.parquet").write_text("precious")
    with pytest.raises(InputError, match="holds results that no tuco run wrote"):
        score(corpus, overwrite=overwrite)
    assert (tmp_path / "out/part-00000.parquet").read_text() == "precious"


def test_two_runs_at_once_into_one_directory(score, corpus, tmp_path):
    directory = JobDirectory(store_at(str(tmp_path / "out")))
    with directory.epoch():
        assert f"process {os.getpid()}" in JobDirectory(store_at(str(tmp_path / "out"))).running()
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
    started = LocalWorkers.opened
    with pytest.raises(InputError, match=r"cannot write to --out .*: Permission denied"):
        score(corpus)
    assert LocalWorkers.opened == started


@pytest.mark.parametrize(
    "options",
    [{"columns": Columns(prompt="nope")}, {"chat_template": "missing.jinja"}, {"file_format": "parquet"}],
)
def test_what_can_be_refused_is_refused_before_the_engine_starts(score, corpus, tmp_path, options):
    started = LocalWorkers.opened
    with pytest.raises(InputError):
        score(corpus, **options)
    assert LocalWorkers.opened == started
    assert not (tmp_path / "out").exists()


def test_what_a_replaced_jobs_worker_wrote_later_goes_with_the_next_command(score, corpus, tmp_path):
    """Of a finished job too: readers would take those rows for its own."""
    score(corpus)
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("part-*")}
    score(corpus, overwrite=True)
    for path, data in before.items():
        path.write_bytes(data)
    assert score(corpus) is None
    assert len(read(tmp_path / "out")) == 50
    assert (tmp_path / "out/_SUCCESS").exists()


def test_a_survey_is_kept_where_no_engine_starts(score, corpus, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(LocalWorkers, "facts", lambda self: (_ for _ in ()).throw(EngineError("no memory")))
        with pytest.raises(EngineError):
            score(corpus)
    monkeypatch.setattr(run, "planned", lambda *_: pytest.fail("surveyed again"))
    score(corpus)
    assert len(read(tmp_path / "out")) == 50
