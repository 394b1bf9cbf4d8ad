"""Inputs that can be read only once: copied, scored, gone; and resumed where the same bytes come again."""

import os
from contextlib import contextmanager
from threading import Thread

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tuco_vllm.corpus.directory import JobDirectory
from tuco_vllm.corpus.inputs import find_inputs
from tuco_vllm.corpus.pipes import copied
from tuco_vllm.errors import EngineError, InputError
from tuco_vllm.store import store_at

ROWS = b"".join(b'{"prompt": "row %d"}\n' % n for n in range(20))


@contextmanager
def fed(descriptor, data=ROWS):
    """The path of a pipe that these bytes come out of."""
    writer = Thread(target=_write, args=(descriptor, data))
    writer.start()
    yield
    writer.join()


def _write(target, data):
    with open(target, "wb") as pipe:
        pipe.write(data)


@contextmanager
def anonymous(data=ROWS):
    """What a shell's ``<(command)`` is."""
    read, write = os.pipe()
    with fed(write, data):
        yield f"/dev/fd/{read}"
        os.close(read)


@contextmanager
def redirected(path):
    """What /dev/stdin is after ``< path``."""
    descriptor = os.open(path, os.O_RDONLY)
    yield f"/dev/fd/{descriptor}"
    os.close(descriptor)


def ids(out):
    return pq.read_table(out)["id"].to_pylist()


def copies(out):
    return [path.name for path in (out / "_tuco").glob("input-*")]


def test_a_named_pipe_has_the_format_and_the_ids_of_its_name(score, tmp_path, capsys):
    os.mkfifo(tmp_path / "rows.jsonl")
    with fed(tmp_path / "rows.jsonl"):
        score(tmp_path / "rows.jsonl")
    assert ids(tmp_path / "out") == [f"rows.jsonl:{n}" for n in range(20)]
    assert copies(tmp_path / "out") == []
    said = capsys.readouterr().err.splitlines()[0]
    assert said.startswith(
        f"tuco: {tmp_path}/rows.jsonl is read only once, so it is copied to {tmp_path}/out/_tuco"
    )
    assert said.endswith("to resume after an interruption, give the same command the same bytes again")


@pytest.mark.parametrize("file_format", ["parquet", "txt", "csv"])
def test_an_anonymous_pipe_needs_a_format_and_may_hold_any(score, tmp_path, file_format):
    pq.write_table(pa.table({"prompt": ["a", "b"]}), tmp_path / "x.parquet")
    held = {"parquet": (tmp_path / "x.parquet").read_bytes(), "txt": b"a\nb\n", "csv": b"prompt\na\nb\n"}
    with anonymous(held[file_format]) as pipe:
        with pytest.raises(InputError, match=r"cannot tell the format of /dev/fd/\d+: say --format"):
            score(pipe)
        score(pipe, file_format=file_format)
    assert pq.read_table(tmp_path / "out")["prompt"].to_pylist() == ["a", "b"]


def test_the_same_bytes_resume_a_job_and_others_are_another_job(score, tmp_path):
    os.mkfifo(pipe := tmp_path / "rows.jsonl")
    with fed(pipe), pytest.raises(EngineError):
        score(pipe, engine={"dies_after": 9}, rows_per_file=4)
    assert copies(tmp_path / "out") == []
    with fed(pipe, ROWS + b"{}"), pytest.raises(InputError, match=r"input .*/rows.jsonl has changed since"):
        score(pipe)
    with fed(pipe):
        resumed = score(pipe)
    assert ids(tmp_path / "out") == [f"rows.jsonl:{n}" for n in range(20)]
    assert 0 < resumed.rows_scored < 20
    with fed(pipe):
        assert score(pipe) is None  # finished
    assert copies(tmp_path / "out") == []


def test_a_redirected_file_is_copied_as_its_name_means_another_file_elsewhere(tmp_path):
    (tmp_path / "x").write_bytes(ROWS)
    with redirected(tmp_path / "x") as path:
        (file,) = find_inputs([path, path], "jsonl", out=tmp_path / "out")
        assert file.once
        with copied([file], store_at(str(tmp_path / "out"))) as (copy,):
            assert (copy.path, copy.size, copy.once) == (path, len(ROWS), False)
            assert copy.changed() is None
            with copy.open() as content:
                assert content.read() == ROWS
    assert copies(tmp_path / "out") == []


def test_a_pipe_among_other_files_keeps_its_place(score, tmp_path):
    (tmp_path / "a.txt").write_text("first\n")
    os.mkfifo(tmp_path / "b.txt")
    with fed(tmp_path / "b.txt", b"second\n"):
        score(tmp_path / "a.txt", tmp_path / "b.txt")
    assert ids(tmp_path / "out") == ["a.txt:0", "b.txt:0"]


def test_a_pipe_in_a_folder_is_not_waited_for(score, tmp_path):
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in/b.txt")
    (tmp_path / "in/a.txt").write_text("x\n")
    for argument in (tmp_path / "in", tmp_path / "in/*.txt"):
        assert [file.name for file in find_inputs([str(argument)], out=tmp_path / "out")] == ["a.txt"]


def test_what_a_killed_run_left_goes_with_the_next_that_may_write(score, corpus, tmp_path):
    (tmp_path / "out/_tuco").mkdir(parents=True)
    left = tmp_path / "out/_tuco/input-left"
    left.write_bytes(ROWS)
    with (
        JobDirectory(store_at(str(tmp_path / "out"))).epoch(),
        pytest.raises(InputError, match="is being written by"),
    ):
        score(corpus)
    assert left.exists()
    score(corpus)
    assert copies(tmp_path / "out") == []


def test_a_copy_that_cannot_be_written_is_one_line(score, tmp_path):
    (tmp_path / "file").write_text("")
    with anonymous(b"") as pipe, pytest.raises(InputError, match=r"^cannot write to --out .*file: "):
        score(pipe, out="file", file_format="txt")
