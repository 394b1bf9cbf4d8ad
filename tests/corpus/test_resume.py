"""Stopped in whatever way and wherever, and run again: every row exactly once, nothing half-written."""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fake_scorer import FakeScorer, make_encoder

from tuco_vllm.corpus import publish
from tuco_vllm.corpus.feeder import Feeder, SetAside
from tuco_vllm.errors import EngineError


def read(out: Path):
    return pq.read_table(out).to_pylist()


def test_a_dead_engine_costs_what_was_in_flight_and_the_job_resumes(score, corpus, tmp_path):
    score(corpus, out="whole")
    with pytest.raises(EngineError):
        score(corpus, engine={"dies_after": 11})
    kept = read(tmp_path / "out")
    assert 8 <= len(kept) < 25
    record = json.loads((tmp_path / "out/_tuco/run.json").read_text())
    assert (record["state"], record["counts"]["rows_committed"]) == ("failed", len(kept))
    assert record["error"] == "the engine died"
    pipeline = score(corpus)
    assert read(tmp_path / "out") == read(tmp_path / "whole")
    assert pipeline.rows_scored == 32 - sum(
        row["error"] is None for row in kept
    )  # no kept row is scored again
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


@pytest.fixture
def two_set_aside(monkeypatch, models):
    """Engines die on the rows 4 and 42, as the feeder says it; another row has the words, not the flag."""
    encode = make_encoder(models[1]).encode
    reasons = {
        tuple(encode(prompt).token_ids): reason
        for prompt, reason in (
            ("a 4", SetAside("in whatever words")),
            ("b 17", SetAside("in others")),
            ("a 7", "the engine died twice on this row: it says"),
        )
    }
    real = Feeder.score

    def score(self, prompts, **options):
        results = real(self, prompts, **options)
        return [reasons.get(tuple(ids), norms) for ids, norms in zip(prompts, results, strict=True)]

    monkeypatch.setattr(Feeder, "score", score)


def set_aside(out: Path) -> tuple[list[int], int]:
    record = json.loads((out / "_tuco/run.json").read_text())
    return record["set_aside_rows"], record["counts"]["quarantined"]


def test_rows_that_engines_died_on_are_counted_by_their_flag(score, corpus, tmp_path, two_set_aside):
    score(corpus, rows_per_file=20)
    rows = read(tmp_path / "out")
    assert [rows[n]["error"] for n in (4, 42)] == ["in whatever words", "in others"]
    assert "died twice" in rows[7]["error"]
    assert set_aside(tmp_path / "out") == ([4, 42], 2)
    assert not {"set_aside", "templated"} & set(rows[0])


def test_killed_at_every_step_of_every_commit_and_resumed(
    score, corpus, tmp_path, monkeypatch, two_set_aside
):
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
        assert set_aside(tmp_path / out) == ([4, 42], 2), f"killed before step {step}"
        assert not list((tmp_path / out).glob(".part*"))


def assert_nothing_half_written(out):
    for path in out.glob("part-*"):
        assert pq.read_metadata(path).num_rows > 0
    if (out / "_SUCCESS").exists():
        assert len(read(out)) == 50


def test_resumed_with_another_size_of_parts(score, corpus, tmp_path):
    score(corpus, out="whole")
    for dies_after in (4, 5, 9):
        with pytest.raises(EngineError):
            score(corpus, engine={"dies_after": dies_after}, rows_per_file=4)
    score(corpus, rows_per_file=7)
    assert read(tmp_path / "out") == read(tmp_path / "whole")


def test_an_interruption_keeps_finished_rows(score, corpus, tmp_path, monkeypatch):
    real = FakeScorer.step

    def interrupted(self):
        if self.scored > 9:
            raise KeyboardInterrupt
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(FakeScorer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            score(corpus)
    kept = [row for row in read(tmp_path / "out") if row["error"] is None]
    assert len(kept) > 9
    assert json.loads((tmp_path / "out/_tuco/run.json").read_text())["state"] == "interrupted"
    assert score(corpus).rows_scored == 32 - len(kept)


def test_the_engine_is_told_about_how_many_tokens_are_left(score, tmp_path):
    """Four bytes are a token; rows that are done do not count, and with --limit not those after it."""
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"prompt": "word" * 10}) + "\n" for _ in range(40)))
    assert score(tmp_path / "x.jsonl", out="whole").tokens == 400
    assert score(tmp_path / "x.jsonl", out="limited", limit=30).tokens == 300
    with pytest.raises(EngineError):
        score(tmp_path / "x.jsonl", rows_per_file=4, engine={"dies_after": 12})
    assert score(tmp_path / "x.jsonl", rows_per_file=4).tokens == 280
