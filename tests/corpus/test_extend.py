"""More files for a job that is there: ids and parts of the old ones stay, only the new ones are scored."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from killed import Killed, heartbeats_of_the_dead, kill_at

from tuco_vllm.errors import EngineError, InputError
from tuco_vllm.store import LocalStore


def read(out):
    return pq.read_table(out).to_pylist()


def write(path: Path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def day(tmp_path):
    """A folder that grows: day(n) writes one more file."""

    def call(name, rows=10, **more):
        return write(tmp_path / "in" / name, [{"prompt": f"{name} {n}", "n": n, **more} for n in range(rows)])

    return call


def test_only_the_new_are_scored_behind_the_others(score, day, tmp_path):
    day("b.jsonl")
    score(tmp_path / "in", rows_per_file=4)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("part-*")}
    day("a.jsonl")  # by name it is first
    with pytest.raises(InputError, match=r"one more is given, .*a.jsonl: --extend adds to it"):
        score(tmp_path / "in")
    workers = score(tmp_path / "in", extend=True, rows_per_file=4)
    assert workers.rows_scored == 10
    rows = read(tmp_path / "out")
    assert [row["id"] for row in rows] == [f"{name}.jsonl:{n}" for name in "ba" for n in range(10)]
    assert all((tmp_path / "out" / name).read_bytes() == data for name, data in before.items())
    first = [
        int(pq.read_metadata(part).metadata[b"tuco.first_row"])
        for part in sorted((tmp_path / "out").glob("p*"))
    ]
    assert first == [0, 4, 8, 10, 14, 18]
    assert score(tmp_path / "in") is None  # the same command, finished
    day("c.jsonl", 3)
    assert score(tmp_path / "in", extend=True).rows_scored == 3
    assert [row["id"] for row in read(tmp_path / "out")][20:] == [f"c.jsonl:{n}" for n in range(3)]
    assert score(tmp_path / "in", extend=True) is None
    with pytest.raises(InputError, match=r"--extend needs the job's own inputs too, and .*/a.jsonl is not"):
        score(tmp_path / "in/b.jsonl", extend=True)


def test_ids_keep_the_root_that_the_job_has(score, day, tmp_path):
    old = day("one/x.jsonl", 2)
    score(old)
    new = write(tmp_path / "elsewhere/x.jsonl", [{"prompt": "y", "n": 1}])
    score(old, new, extend=True)
    ids = [row["id"] for row in read(tmp_path / "out")]
    assert ids == ["x.jsonl:0", "x.jsonl:1", f"file{new}:0"]


def test_stopped_in_the_midst_of_it(score, day, tmp_path):
    day("a.jsonl")
    score(tmp_path / "in", rows_per_file=4)
    day("b.jsonl", 12)
    with pytest.raises(EngineError):
        score(tmp_path / "in", extend=True, rows_per_file=4, engine={"dies_after": 5})
    assert not (tmp_path / "out/_SUCCESS").exists()
    assert score(tmp_path / "in", rows_per_file=4).rows_scored in range(4, 12)  # it is the job's file now
    ids = [row["id"] for row in read(tmp_path / "out")]
    assert ids == [f"a.jsonl:{n}" for n in range(10)] + [f"b.jsonl:{n}" for n in range(12)]
    counts = json.loads((tmp_path / "out/_tuco/run.json").read_text())["counts"]
    assert (counts["rows"], counts["rows_total"], counts["rows_committed"]) == (22, 22, 22)


def test_killed_at_every_step_of_it(score, day, tmp_path, monkeypatch):
    day("a.jsonl", 4)

    def extended(out, step):
        """Begin with one file, and die at that step with the other."""
        score(tmp_path / "in/a.jsonl", out=out, rows_per_file=4)
        day("b.jsonl", 8)
        with monkeypatch.context() as patch:
            calls = kill_at(patch, step)
            score(tmp_path / "in", out=out, rows_per_file=4, extend=True)
        return calls

    steps = len(extended("whole", 10**9))
    assert steps > 10
    for step in range(steps):
        out = tmp_path / f"killed-{step}"
        with pytest.raises(Killed):
            extended(out.name, step)
        heartbeats_of_the_dead(out)
        score(tmp_path / "in", out=out.name, rows_per_file=4, extend=True)
        assert read(out) == read(tmp_path / "whole"), f"killed before step {step}"
        assert (out / "_SUCCESS").exists(), f"killed before step {step}"


def test_an_unfinished_job_can_be_extended(score, day, tmp_path):
    day("a.jsonl", 12)
    with pytest.raises(EngineError):
        score(tmp_path / "in", rows_per_file=4, engine={"dies_after": 5})
    day("b.jsonl", 5)
    score(tmp_path / "in", extend=True, rows_per_file=4)
    assert [row["n"] for row in read(tmp_path / "out")] == [*range(12), *range(5)]


def test_what_does_not_fit_is_refused_and_leaves_the_job_as_it_was(score, day, tmp_path):
    day("a.jsonl")
    score(tmp_path / "in")
    new = day("b.jsonl", 2, colour="red")
    with pytest.raises(
        InputError, match="column 'colour' of the new files is of type string, and the job has it"
    ):
        score(tmp_path / "in", extend=True)
    new.write_text('{"prompt": "x", "n": 1, "response": "y"}\n')
    with pytest.raises(InputError, match="the new files have responses and the job has none"):
        score(tmp_path / "in", extend=True)
    new.unlink()
    assert score(tmp_path / "in") is None
    day("c.jsonl")
    with pytest.raises(InputError, match=r"limit was None and is 3"):
        score(tmp_path / "in", extend=True, limit=3)


def test_extending_what_is_not_there_begins_it(score, day, tmp_path):
    day("a.jsonl")
    assert score(tmp_path / "in", extend=True).rows_scored == 10


def test_a_corpus_without_rows_gets_some(score, day, tmp_path):
    for name, text in (("a.txt", ""), ("b.txt", "x\ny\n")):
        (tmp_path / name).write_text(text)
        score(*sorted(tmp_path.glob("*.txt")), extend=True)
    assert [row["id"] for row in read(tmp_path / "out")] == ["b.txt:0", "b.txt:1"]


def test_a_run_of_an_earlier_version_is_not_extended(score, day, tmp_path):
    day("a.jsonl")
    score(tmp_path / "in")
    job = tmp_path / "out/_tuco/job.json"
    said = json.loads(job.read_text())
    job.write_text(json.dumps({name: said[name] for name in said if name not in ("job", "units", "content")}))
    day("b.jsonl")
    with pytest.raises(InputError, match="holds a run of an earlier version: choose another --out"):
        score(tmp_path / "in", extend=True)


def test_files_without_rows_add_nothing(score, day, tmp_path):
    day("a.jsonl", 0)
    score(tmp_path / "in")
    day("b.jsonl", 0)
    assert score(tmp_path / "in", extend=True) is None
    write(tmp_path / "in/c.jsonl", [{"prompt": "x"}, {"prompt": "y"}])
    assert score(tmp_path / "in", extend=True).rows_scored == 2
    assert score(tmp_path / "in") is None


def test_an_answer_that_is_lost_is_no_other_run(score, day, tmp_path, monkeypatch):
    day("a.jsonl")
    score(tmp_path / "in")
    day("b.jsonl")
    real = LocalStore.create

    def loses(self, name, data):
        return real(self, name, data) and "job-0002" not in name

    monkeypatch.setattr(LocalStore, "create", loses)
    assert score(tmp_path / "in", extend=True).rows_scored == 10
