"""The output as a job's state: what kills, power cuts, hands and zombies leave."""

import os
import shutil
from itertools import count

import pytest
from killed import Killed, kill_at
from object_store import object_store  # noqa: F401  (a fixture)
from small_job import CONTENT, IDENTITY, PLAN, begun, finished, put

from tuco_vllm.corpus import epoch as epochs
from tuco_vllm.corpus.directory import JobDirectory
from tuco_vllm.corpus.plan import Plan
from tuco_vllm.errors import InputError
from tuco_vllm.records import part_name
from tuco_vllm.store import OutputError, store_at


@pytest.fixture(autouse=True)
def still(monkeypatch):
    """No beats while a test runs, which counts what is done to the disk; nor need that be on the disk."""
    monkeypatch.setattr(epochs, "BEAT_SECONDS", 1000.0)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path):
    return store_at(request.getfixturevalue("object_store") if request.param == "s3" else tmp_path / "out")


@pytest.fixture
def local(tmp_path):
    return store_at(tmp_path / "out")


@pytest.mark.parametrize("logged", [False, True])
@pytest.mark.parametrize("harm", [lambda data: b"", lambda data: data[:-20], lambda data: b"x" * 100])
def test_an_empty_or_torn_part_counts_as_absent_and_goes(store, harm, logged):
    directory = finished(store) if logged else begun(store, 0, 1, 2, 3)
    name = part_name(2, directory.job_id)
    store.replace(name, harm(store.read(name)))
    directory = JobDirectory(store)
    assert directory.holds(IDENTITY)
    assert not directory.is_whole()
    assert name in store.list(), "who only looks changes nothing"
    with directory.epoch(0):
        assert sorted(directory.done(PLAN)) == [0, 1, 3]
        assert f"{name} is empty or torn: its rows are scored again" in directory.notes
        assert not directory.is_finished
        assert name not in store.list()
        put(directory, 2)
        assert len(directory.done(PLAN)) == 4
        directory.finish()


def test_a_part_that_is_gone_is_noticed_of_a_finished_job(local):
    directory = finished(local)
    local.delete(part_name(1, directory.job_id))
    assert not directory.is_whole()
    with directory.epoch(0):
        assert sorted(directory.done(PLAN)) == [0, 2, 3]
    assert not directory.is_finished
    assert directory.notes == ["the job was marked complete and is not: what is missing is scored again"]


def test_what_a_zombie_of_an_overwritten_job_writes_is_removed(local):
    old = finished(local).job_id
    directory = JobDirectory(local)
    with directory.epoch(0):
        directory.overwrite()
        put(directory, 3, job=old)
    directory = JobDirectory(local)
    assert not directory.holds(IDENTITY)
    with directory.epoch(0):
        directory.begin(IDENTITY, CONTENT, PLAN)
        put(directory, 1, job=old)
        assert directory.done(PLAN) == {}
        assert local.list() == {}
        put(directory, 0, 1, 2, 3)
        put(directory, 2, job=old)
        directory.finish()
    assert set(local.list()) == {*(part_name(n, directory.job_id) for n in range(4)), "_SUCCESS"}


def test_a_run_that_is_past_begins_ends_and_removes_nothing(local):
    past, present = JobDirectory(local), JobDirectory(local)
    with past.epoch(0), present.epoch(0):
        job = present.begin(IDENTITY, CONTENT, PLAN)
        put(present, 0, 1, 2, 3)
        for act in (
            lambda: past.begin(IDENTITY, CONTENT, PLAN),
            past.overwrite,
            past.finish,
            lambda: past.done(PLAN),
        ):
            with pytest.raises(OutputError, match="another run has taken over"):
                act()
    assert (JobDirectory(local).job_id, len(local.list())) == (job, 4)


def test_two_that_begin_at_once_despite_all(local, monkeypatch):
    """The one was asleep between its look at the epoch and what it then did."""
    monkeypatch.setattr(epochs.Epoch, "check", lambda self: None)
    past, present = JobDirectory(local), JobDirectory(local)
    with past.epoch(0), present.epoch(0):
        job = present.begin(IDENTITY, CONTENT, PLAN)
        with pytest.raises(OutputError, match="another run has begun"):
            past.begin(IDENTITY, CONTENT, PLAN)
    assert [*local.list("_tuco/plan")] == [f"_tuco/plan/{job}.parquet"]


def test_a_lost_plan_is_told(local):
    directory = begun(local)
    local.replace(f"_tuco/plan/{directory.job_id}.parquet", b"PAR1")
    with pytest.raises(InputError, match="is missing or torn: start anew with --overwrite"):
        directory.plan()
    local.replace("_tuco/job.json", b"{")
    with pytest.raises(InputError, match=r"cannot read .*/out/_tuco/job.json"):
        JobDirectory(local).holds(IDENTITY)


def test_what_a_kill_leaves_half_written_goes_with_the_next_run(local):
    begun(local)
    local.create("_tuco/tmp/1234-abcd", b"half")
    with JobDirectory(local).epoch(0):
        assert local.list("_tuco/tmp") == {}


HALF = Plan(PLAN.table.slice(0, 2))


def run(store, *, overwrite=False):
    """A driver's steps, of a job of two units, without a worker's."""
    directory = JobDirectory(store)
    is_here = not overwrite and directory.holds(IDENTITY)
    if is_here and directory.is_finished and directory.is_whole():
        return
    with directory.epoch(0):
        if overwrite:
            directory.overwrite()
        if not is_here:
            directory.begin(IDENTITY, CONTENT, HALF)
        done = directory.done(HALF)
        for unit in {0, 1} - set(done):
            directory.log(put(directory, unit))
        directory.finish()


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_before_every_step_and_run_again(tmp_path, monkeypatch, overwrite):
    run(store_at(tmp_path / "before"))
    for step in count():
        store = store_at(tmp_path / str(step))
        if overwrite:
            shutil.copytree(tmp_path / "before", store.folder)
        with monkeypatch.context() as patch:
            calls = kill_at(patch, step)
            try:
                run(store, overwrite=overwrite)
            except Killed:
                pass
            else:
                break
        run(store)
        directory = JobDirectory(store)
        assert (directory.holds(IDENTITY), directory.is_finished, directory.is_whole()) == (True,) * 3, step
        assert len(store.list()) == 3, step
    assert step == len(calls) > 40
