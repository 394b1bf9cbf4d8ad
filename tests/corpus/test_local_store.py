"""The local store where it may fail: at a kill, a full disk, rights, and filesystems that lack something."""

import errno
import os
import pickle
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from killed import Killed, kill_at

from tuco_vllm.errors import InputError
from tuco_vllm.store import OutputError, store_at


@pytest.fixture
def local(tmp_path):
    return store_at(tmp_path / "out")


def publish(store, name, data):
    with store.scratch() as file:
        file.write_bytes(data)
        return store.publish(file, name)


@pytest.mark.parametrize(
    ("act", "before", "after"),
    [
        (lambda store: store.create("x/y", b"new"), None, b"new"),
        (lambda store: publish(store, "x/y", b"new"), None, b"new"),
        (lambda store: store.replace("x/y", b"new"), b"old", b"new"),
        (lambda store: store.delete("x/y"), b"old", None),
    ],
    ids=["create", "publish", "replace", "delete"],
)
def test_killed_before_every_step_a_name_has_all_or_nothing(local, monkeypatch, act, before, after):
    steps = 0
    while True:
        local.delete("x/y")
        if before is not None:
            local.create("x/y", before)
        with monkeypatch.context() as patch:
            calls = kill_at(patch, steps)
            try:
                act(local)
            except Killed:
                pass
            else:
                break
        assert local.read("x/y") in (before, after), f"killed before {calls[steps]} ({steps})"
        act(local)
        assert local.read("x/y") == after
        steps += 1
    assert local.read("x/y") == after
    assert steps >= 2
    assert calls[-1] in ("fsync", "unlink")


def test_what_is_created_was_synced_before_it_had_its_name(local, monkeypatch):
    local.create("first", b"")
    calls = kill_at(monkeypatch, 10**9)
    local.create("x", b"x")
    assert calls == ["fsync", "link", "fsync", "unlink"]
    calls.clear()
    local.replace("x", b"y")
    assert calls == ["fsync", "replace", "fsync", "unlink"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV, errno.EMLINK])
def test_a_filesystem_without_hard_links(local, monkeypatch, number):
    def no_links(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", no_links)
    assert (local.create("x", b"first"), local.create("x", b"second")) == (True, False)
    assert (publish(local, "y", b"first"), publish(local, "y", b"second")) == (True, False)
    assert (local.read("x"), local.read("y")) == (b"first", b"first")
    assert local.list("_tuco/tmp") == {}


def test_a_link_whose_answer_is_lost_on_nfs_counts(local, monkeypatch):
    real = os.link

    def asked_twice(*arguments, **options):
        real(*arguments, **options)
        real(*arguments, **options)

    monkeypatch.setattr(os, "link", asked_twice)
    assert local.create("x", b"x")
    assert not local.create("x", b"x")


@pytest.mark.parametrize(
    ("call", "act"), [("fsync", "create"), ("link", "create"), ("fsync", "replace"), ("replace", "replace")]
)
def test_a_full_disk_is_told_and_leaves_nothing_half_written(local, monkeypatch, call, act):
    local.create("kept", b"kept")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OutputError) as refused:
            getattr(local, act)("x", b"x")
    assert str(refused.value) == (
        f"cannot write {local.folder}/x: No space left on device; finished parts stay, "
        "and the same command (without --overwrite) goes on from there"
    )
    assert pickle.loads(pickle.dumps(refused.value)).reason == "No space left on device"
    assert local.read("x") is None
    assert (local.list("_tuco/tmp"), local.read("kept")) == ({}, b"kept")


def test_a_read_only_directory_and_one_that_vanishes(local, monkeypatch):
    def read_only(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    # Tests may run as root, whom no mode bits stop.
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", read_only)
        with pytest.raises(OutputError, match=r"cannot write .*: Permission denied"):
            local.create("x", b"x")
    with local.scratch() as file:
        file.write_bytes(b"rows")
        file.unlink()
        file.parent.rmdir()
        with pytest.raises(OutputError, match="No such file or directory"):
            local.publish(file, "x")
    assert local.read("x") is None


def test_a_folder_that_cannot_be_synced_is_no_failure(local, monkeypatch):
    real = os.fsync

    def files_only(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    assert local.create("x", b"x")


def test_an_out_that_is_a_file(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="out is a file: name a directory"):
        store_at(tmp_path / "out").look()
    below = store_at(tmp_path / "out/below")
    below.look()
    assert (below.list(), below.read("x")) == ({}, None)
    with pytest.raises(OutputError):
        below.create("x", b"x")


def test_a_file_that_cannot_be_read_is_not_one_that_is_torn(local, monkeypatch):
    local.create("x", b"x" * 100)

    def broken(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    with local.open("x") as file:
        monkeypatch.setattr(Path, "open", broken)
        with pytest.raises(InputError, match=r"cannot read .*/x: Input/output error"):
            pq.read_metadata(file)
