"""The output as a job's state: whose it is, what is done, what --overwrite removes."""

import json
from dataclasses import asdict

import pytest
from object_store import object_store  # noqa: F401  (a fixture)
from small_job import CONTENT, IDENTITY, PLAN, begun, finished, part, put

from tuco_vllm.corpus import directory as directories
from tuco_vllm.corpus import epoch as epochs
from tuco_vllm.corpus.columns import Columns
from tuco_vllm.corpus.directory import JobDirectory
from tuco_vllm.corpus.plan import PLAN_SCHEMA, Plan
from tuco_vllm.corpus.unit import Counts, UnitDone
from tuco_vllm.errors import InputError
from tuco_vllm.records import part_name
from tuco_vllm.store import LocalStore, OutputError, store_at


@pytest.fixture(autouse=True)
def still(monkeypatch):
    """No beats while a test runs."""
    monkeypatch.setattr(epochs, "BEAT_SECONDS", 1000.0)


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path):
    return store_at(request.getfixturevalue("object_store") if request.param == "s3" else tmp_path / "out")


@pytest.fixture
def local(tmp_path):
    return store_at(tmp_path / "out")


def test_a_job_from_its_beginning_to_its_end(store):
    directory = JobDirectory(store)
    assert (directory.holds(IDENTITY), directory.job()) == (False, None)
    with directory.epoch(0):
        job = directory.begin(IDENTITY, CONTENT, PLAN)
        assert (directory.job_id, directory.done(PLAN)) == (job, {})
        directory.log(put(directory, 2, 0))
    again = JobDirectory(store)
    assert (again.holds(IDENTITY), again.job_id, again.is_finished) == (True, job, False)
    content, plan = again.plan()
    assert (content, plan.table) == (CONTENT, PLAN.table)
    with again.epoch(0):
        assert sorted(again.done(plan)) == [0, 2]
        with pytest.raises(OutputError, match="2 of 4 parts are missing"):
            again.finish()
        assert not again.is_finished
        put(again, 1, 3)
        done = again.done(plan)
        assert [done[n] for n in range(4)] == put(again, 0, 1, 2, 3)
        again.finish()
    assert (again.is_finished, again.is_whole(), again.notes) == (True, True, [])
    counts = Counts.of(done.values())
    assert (counts.rows, counts.errors, counts.prompt_tokens) == (10, 2, 28)
    assert sorted(counts.set_aside) == [3, 9]
    assert counts.with_([UnitDone(9, 5, 1, 1, 0, (50,))]).rows == 15
    assert (counts.rows, len(counts.set_aside)) == (10, 2)
    assert again.logged() == done
    assert set(store.list()) == {*(part_name(n, job) for n in range(4)), "_SUCCESS"}


def test_another_job_is_refused_with_what_differs(local):
    begun(local)
    with pytest.raises(InputError, match=r"out holds another job \(dtype was 'auto' and is 'float32'\)"):
        JobDirectory(local).holds(IDENTITY | {"dtype": "float32"})


def test_a_run_of_an_earlier_version(local):
    old = {**IDENTITY, "schema_version": "1"}
    new = {**IDENTITY, "columns": asdict(Columns()), "trace": False}
    local.create("_tuco/job.json", json.dumps(old).encode())
    local.create("part-00000.parquet", b"")
    with pytest.raises(InputError, match=r"half-done run of an earlier version.*--overwrite"):
        JobDirectory(local).holds(new)
    local.create("_SUCCESS", b"")
    directory = JobDirectory(local)
    assert (directory.holds(new), directory.is_finished, directory.is_whole()) == (True, True, True)
    with pytest.raises(InputError, match="another job"):
        directory.holds({**new, "dtype": "float32"})
    with directory.epoch(0):
        directory.overwrite()
        directory.begin(new, CONTENT, PLAN)
    assert local.list() == {}


def test_what_the_log_knows_is_not_opened(local, monkeypatch):
    finished(local)

    def opened(*_):
        raise AssertionError("a part was opened")

    monkeypatch.setattr(LocalStore, "open", opened)
    directory = JobDirectory(local)
    assert directory.is_whole()
    with directory.epoch(0):
        assert len(directory.done(PLAN)) == 4


def test_what_footers_prove_is_logged(local, monkeypatch):
    begun(local, 0, 1)
    directory = JobDirectory(local)
    with directory.epoch(0):
        directory.done(PLAN)
    assert sorted(JobDirectory(local).logged()) == [0, 1]


@pytest.mark.parametrize("name", ["part-00000001-beef", "part-mine", "part-00000004-{job}", "part-00000"])
def test_a_foreign_part_is_named_and_left_alone(local, name):
    directory = finished(local)
    name = f"{name.format(job=directory.job_id)}.parquet"
    local.create(name, b"precious")
    assert directory.holds(IDENTITY)
    with directory.epoch(0):
        for act in (directory.is_whole, lambda: directory.done(PLAN), directory.finish):
            with pytest.raises(InputError, match=f"out/{name} is no part of this job: move it away"):
                act()
    assert local.read(name) == b"precious"


@pytest.mark.parametrize("name", ["part-00000.parquet", "part-00000000-beef.parquet", "_SUCCESS", "part-x"])
def test_results_that_no_run_wrote_are_never_touched(local, name):
    local.create(name, b"precious")
    with pytest.raises(InputError, match=rf"holds results that no tuco run wrote \({name}\)"):
        JobDirectory(local).holds(IDENTITY)
    with (
        pytest.raises(InputError, match="holds results that no tuco run wrote"),
        JobDirectory(local).epoch(0),
    ):
        pass
    assert local.read(name) == b"precious"
    assert local.list("_tuco/epoch") == {}


def test_overwrite_removes_only_what_a_run_made(store):
    directory = finished(store)
    store.create("notes.txt", b"mine")
    with directory.epoch(0):
        directory.overwrite()
        assert store.list() == {"notes.txt": 4}
        assert (directory.job(), directory.is_finished) == (None, False)
        job = directory.begin(IDENTITY | {"dtype": "float32"}, CONTENT, PLAN)
        assert directory.job_id == job
        assert directory.done(PLAN) == {}
        assert store.list("_tuco/plan") == {f"_tuco/plan/{job}.parquet": len(PLAN.to_parquet())}


def test_overwrite_refuses_results_of_others_before_anything_is_started(local):
    finished(local)
    local.create("part-mine.parquet", b"precious")
    with pytest.raises(InputError, match="no tuco run wrote"), JobDirectory(local).epoch(0):
        pass
    assert len(local.list()) == 6


def test_nothing_is_written_outside_an_epoch(local):
    directory = begun(local, 0)
    for act in (
        lambda: directory.begin(IDENTITY, CONTENT, PLAN),
        directory.overwrite,
        directory.finish,
        lambda: directory.log([]),
        lambda: directory.done(PLAN),
    ):
        with pytest.raises(RuntimeError, match="epoch"):
            act()


def test_the_log_is_made_one_and_is_only_a_cache(local, monkeypatch):
    monkeypatch.setattr(directories, "_PIECES", 3)
    directory = finished(local)
    with directory.epoch(0):
        done = directory.logged()
        for unit in range(4):
            directory.log([done[unit]])
    pieces = sorted(local.list("_tuco/log"))
    local.create("_tuco/log/0099-000000.parquet", b"torn")
    local.create("_tuco/log/0099-000001.parquet", local.read(pieces[0])[:-9])
    local.create("_tuco/log/0099-000002.parquet", PLAN.to_parquet())
    with directory.epoch(0):
        assert directory.logged() == done
        assert [*local.list("_tuco/log")] == ["_tuco/log/0004-000000.parquet"]
        assert directory.logged() == done
        directory.log([UnitDone(0, 3, 3, 3, 1)])
        assert directory.logged()[0].errors == 3
    other = JobDirectory(local)
    other._id = "beef"
    assert other.logged() == {}


def test_a_corpus_without_rows_has_one_part(local):
    plan = Plan(PLAN_SCHEMA.empty_table())
    directory = JobDirectory(local)
    with directory.epoch(0):
        job = directory.begin(IDENTITY, CONTENT, plan)
        with pytest.raises(OutputError, match="1 of 1 parts are missing"):
            directory.finish()
        one = Plan.of([], 1, 1)
        local.create(part_name(0, job), part(0, job, one))
        assert [*directory.done(plan)] == [0]
        directory.finish()
    assert directory.is_whole()
