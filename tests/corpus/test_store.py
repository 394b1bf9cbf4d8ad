"""What both kinds of stores promise: a name gets its content once and whole, whoever races."""

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from object_store import SECRET, object_store  # noqa: F401  (a fixture)

from tuco_vllm.errors import InputError
from tuco_vllm.store import LocalStore, ObjectStore, store_at


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path):
    return store_at(request.getfixturevalue("object_store") if request.param == "s3" else tmp_path / "out")


def test_a_name_gets_its_content_once(store):
    assert store.read("a/b.json") is None
    assert store.create("a/b.json", b"first")
    assert not store.create("a/b.json", b"second")
    assert store.read("a/b.json") == b"first"
    store.replace("a/b.json", b"third")
    assert store.read("a/b.json") == b"third"
    assert store.create("empty", b"")
    assert store.read("empty") == b""


def test_a_file_is_published_once_and_its_scratch_is_gone(store):
    for expected in (True, False):
        with store.scratch() as file:
            file.write_bytes(b"rows" * 1000)
            assert store.publish(file, "part-00000000-ab.parquet") == expected
        assert not file.exists()
    assert store.list() == {"part-00000000-ab.parquet": 4000}


def test_scratch_that_is_never_written_leaves_nothing(store):
    with store.scratch():
        pass
    assert store.list("_tuco/tmp") == {}


def test_a_list_is_of_a_folder_not_of_what_is_below(store):
    assert store.list() == store.list("_tuco/log") == {}
    for name in ("x", "_tuco/job.json", "_tuco/log/1.parquet", "_tuco/log/2.parquet", "_tuco/logs"):
        store.create(name, name.encode())
    assert store.list() == {"x": 1}
    assert store.list("_tuco") == {"_tuco/job.json": 14, "_tuco/logs": 10}
    assert store.list("_tuco/log/") == {"_tuco/log/1.parquet": 19, "_tuco/log/2.parquet": 19}


def test_deleting_takes_what_is_there(store):
    for name in ("a", "b", "_tuco/c"):
        store.create(name, b"x")
    store.delete("a", "nothing", "_tuco/c")
    store.delete("nothing")
    store.delete()
    assert (store.list(), store.list("_tuco")) == ({"b": 1}, {})


def test_a_footer_is_read_without_its_body(store):
    rows = pa.table({"n": range(10**5)})
    with store.scratch() as file:
        pq.write_table(rows, file, compression="none")
        store.publish(file, "rows.parquet")
    size = store.list()["rows.parquet"]
    for given in (None, size):
        with store.open("rows.parquet", given) as file:
            assert pq.read_metadata(file).num_rows == 10**5
            file.seek(-4, os.SEEK_END)
            assert (file.read(), file.tell()) == (b"PAR1", size)
            file.seek(0)
            assert pq.read_table(file).equals(rows)
    with pytest.raises(FileNotFoundError):
        store.open("nothing")
    with pytest.raises(FileNotFoundError), store.open("nothing", 10) as file:
        file.read()


def test_of_sixteen_who_race_one_is_first(store):
    barrier = Barrier(16)

    def race(number):
        each = store_at(store.where)
        barrier.wait()
        return each.create("claim", str(number).encode())

    with ThreadPoolExecutor(16) as pool:
        won = [number for number, first in enumerate(pool.map(race, range(16))) if first]
    assert [str(number).encode() for number in won] == [store.read("claim")]


def test_stores_travel_and_are_equal_where_they_name_one_place(store):
    store.create("x", b"x")
    travelled = pickle.loads(pickle.dumps(store))
    assert (travelled, travelled.read("x")) == (store, b"x")
    assert hash(travelled) == hash(store)
    assert SECRET.encode() not in pickle.dumps(store)


@pytest.mark.parametrize(
    ("out", "expected"),
    [
        ("a/../b", LocalStore(Path.cwd() / "b")),
        ("file:///a/b", LocalStore(Path("/a/b"))),
        ("s3://bucket/a/", ObjectStore("s3://bucket/a")),
        ("abfs://box@host.net/a", ObjectStore("abfs://box@host.net/a")),
    ],
)
def test_where_an_out_is(out, expected):
    assert store_at(out) == expected
    assert store_at(out).folder == getattr(expected, "folder", None)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("https://host/x", "no output goes to https://"),
        ("hf://datasets/x", "no output goes to hf://"),
        ("s3:///x", "names no bucket"),
        ("s3://key:hunter2@bucket/x", "keys go into the environment"),
        ("az://box/x?sig=hunter2", "keys go into the environment"),
    ],
)
def test_an_out_that_is_no_place(out, message):
    with pytest.raises(InputError, match=message) as refused:
        store_at(out)
    assert "hunter2" not in str(refused.value)


def test_to_import_a_store_loads_no_obstore():
    code = "import sys, tuco_vllm.store; print('obstore' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
