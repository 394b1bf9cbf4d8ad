"""Stopped in whatever way and wherever, and run again: every row exactly once, nothing half-written."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fake_scorer import FakeScorer, make_encoder
from killed import Killed, heartbeats_of_the_dead, kill_at

from tuco_vllm.corpus import chunks, planning
from tuco_vllm.corpus.feeder import Feeder, SetAside
from tuco_vllm.errors import EngineError, InputError
from tuco_vllm.store import LocalStore, OutputError


def read(out: Path):
    return pq.read_table(out).to_pylist()


def record(out: Path):
    return json.loads((out / "_tuco/run.json").read_text())


def test_a_dead_engine_costs_the_units_at_hand_and_the_job_resumes(score, corpus, tmp_path):
    score(corpus, out="whole")
    with pytest.raises(EngineError):
        score(corpus, engine={"dies_after": 11}, rows_per_file=4)
    kept = read(tmp_path / "out")
    assert 8 <= len(kept) < 25
    assert (record(tmp_path / "out")["state"], record(tmp_path / "out")["error"]) == (
        "failed",
        "the engine died",
    )
    assert record(tmp_path / "out")["counts"]["rows_committed"] == len(kept)
    workers = score(corpus)
    assert read(tmp_path / "out") == read(tmp_path / "whole")
    assert workers.rows_scored == 32 - sum(row["error"] is None for row in kept), (
        "no kept row is scored again"
    )
    counts = record(tmp_path / "out")["counts"]
    assert (record(tmp_path / "out")["state"], counts["rows"], counts["errors"]) == ("finished", 50, 18)
    assert counts["prompt_tokens"] == sum(row["prompt_tokens"] or 0 for row in read(tmp_path / "out"))


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
    return record(out)["set_aside_rows"], record(out)["counts"]["quarantined"]


def test_rows_that_engines_died_on_are_counted_by_their_flag(score, corpus, tmp_path, two_set_aside):
    score(corpus, rows_per_file=20)
    rows = read(tmp_path / "out")
    assert [rows[n]["error"] for n in (4, 42)] == ["in whatever words", "in others"]
    assert "died twice" in rows[7]["error"]
    assert set_aside(tmp_path / "out") == ([4, 42], 2)
    assert not {"set_aside", "templated"} & set(rows[0])


def test_killed_at_every_step_and_resumed(score, corpus, tmp_path, monkeypatch, two_set_aside):
    with monkeypatch.context() as patch:
        calls = kill_at(patch, 10**9)
        score(corpus, out="whole", rows_per_file=20)
    whole = read(tmp_path / "whole")
    assert len(calls) > 20
    for step in range(len(calls)):
        out = f"killed-{step}"
        with monkeypatch.context() as patch:
            kill_at(patch, step)
            with pytest.raises(Killed):
                score(corpus, out=out, rows_per_file=20)
        assert_nothing_half_written(tmp_path / out)
        was_finished = (tmp_path / out / "_SUCCESS").exists()
        heartbeats_of_the_dead(tmp_path / out)
        score(corpus, out=out, rows_per_file=20)
        assert read(tmp_path / out) == whole, f"killed before step {step}"
        assert set_aside(tmp_path / out) == ([4, 42], 2), f"killed before step {step}"
        assert record(tmp_path / out)["engine"]["num_layers"] == 3, f"killed before step {step}"
        if not was_finished:  # else nothing is written
            assert not list((tmp_path / out / "_tuco/tmp").glob("*")), f"killed before step {step}"


def assert_nothing_half_written(out):
    for path in out.glob("part-*"):
        assert pq.read_metadata(path).num_rows > 0
    if (out / "_SUCCESS").exists():
        assert len(read(out)) == 50


def test_an_interruption_keeps_finished_parts(score, corpus, tmp_path, monkeypatch):
    real = FakeScorer.step

    def interrupted(self):
        if self.scored > 9:
            raise KeyboardInterrupt
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(FakeScorer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            score(corpus, rows_per_file=5)
    kept = [row for row in read(tmp_path / "out") if row["error"] is None]
    assert len(kept) > 5
    assert record(tmp_path / "out")["state"] == "interrupted"
    assert score(corpus).rows_scored == 32 - len(kept)


def test_the_engine_is_told_about_how_many_tokens_are_left(score, tmp_path):
    """Four bytes are a token; rows that are done do not count, and with --limit not those after it."""
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"prompt": "word" * 10}) + "\n" for _ in range(40)))
    assert score(tmp_path / "x.jsonl", out="whole").tokens == 400
    assert score(tmp_path / "x.jsonl", out="limited", limit=30).tokens == 300
    with pytest.raises(EngineError):
        score(tmp_path / "x.jsonl", rows_per_file=4, engine={"dies_after": 12})
    assert score(tmp_path / "x.jsonl", rows_per_file=4).tokens == 280


def torn(part):
    part.write_bytes(part.read_bytes()[:-100])


@pytest.mark.parametrize("harm", [Path.unlink, lambda part: part.write_bytes(b""), torn])
@pytest.mark.parametrize("finished", [True, False])
def test_a_part_that_was_deleted_or_cut_is_noticed_and_scored_again(score, corpus, tmp_path, harm, finished):
    """By a repeated command, also of a finished job; no other row is scored."""
    score(corpus, rows_per_file=5)
    whole = read(tmp_path / "out")
    harm(sorted((tmp_path / "out").glob("part-*"))[3])
    if not finished:
        (tmp_path / "out/_SUCCESS").unlink()
    assert score(corpus, rows_per_file=5).rows_scored in (3, 4)
    assert read(tmp_path / "out") == whole
    assert score(corpus, rows_per_file=5) is None


def test_a_part_of_a_stranger_is_refused(score, corpus, tmp_path):
    score(corpus, rows_per_file=5)
    (tmp_path / "out/part-00000000-0badc0de.parquet").write_bytes(b"")
    with pytest.raises(InputError, match="part-00000000-0badc0de"):
        score(corpus, rows_per_file=5)


def test_a_resume_does_not_read_what_is_done(score, corpus, tmp_path, monkeypatch):
    """Nor survey the inputs again."""
    with pytest.raises(EngineError):
        score(corpus, rows_per_file=5, engine={"dies_after": 20})
    done = {int(part.name.split("-")[1]) for part in (tmp_path / "out").glob("part-*")}
    assert 0 < len(done) < 10
    monkeypatch.setattr(planning, "surveyed", lambda *_, **__: pytest.fail("surveyed again"))
    begun = []
    real = chunks.UnitReader.chunks

    def counted(self, unit, **options):
        begun.append(unit.number)
        return real(self, unit, **options)

    monkeypatch.setattr(chunks.UnitReader, "chunks", counted)
    score(corpus, rows_per_file=5)
    assert set(begun) == {*range(10)} - done


def test_a_store_that_is_gone_is_said_to_be_not_to_be_written(score, corpus, tmp_path, monkeypatch):
    """Not that it cannot be read, which is what asking for another run's claim finds."""
    gone = []

    def refused(self, file, name):
        gone.append(name)
        raise OutputError(f"cannot write {name}: no route to host")

    def unreadable(self, name, real=LocalStore.read):
        if gone:
            raise InputError(f"cannot read {name}: no route to host")
        return real(self, name)

    monkeypatch.setattr(LocalStore, "publish", refused_parts(refused))
    monkeypatch.setattr(LocalStore, "read", unreadable)
    with pytest.raises(OutputError, match=r"cannot write part-.*: no route to host"):
        score(corpus)


def refused_parts(refused, real=LocalStore.publish):
    return lambda self, file, name: (refused if name.startswith("part-") else real)(self, file, name)
