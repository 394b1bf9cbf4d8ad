"""Who writes: one run at a time, as long as its heartbeat moves; whoever is past sees it and stops."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from object_store import object_store  # noqa: F401  (a fixture)

from tuco_vllm.corpus import epoch as epochs
from tuco_vllm.corpus.epoch import claimed, writer
from tuco_vllm.errors import InputError
from tuco_vllm.store import LocalStore, OutputError, store_at

FOREVER = 10_000.0
DRIVER = """
import sys, time
from tuco_vllm.corpus import epoch
from tuco_vllm.store import store_at
epoch.BEAT_SECONDS = 0.1
with epoch.claimed(store_at(sys.argv[1]), 1.0) as claim:
    print(claim.number, flush=True)
    while not claim.lost():
        time.sleep(0.02)
print("lost", flush=True)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(epochs, "BEAT_SECONDS", 0.1)


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path):
    return store_at(request.getfixturevalue("object_store") if request.param == "s3" else tmp_path / "out")


@contextmanager
def driver(store):
    """A run in another process."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", DRIVER, store.where]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        try:
            yield process
        finally:
            process.kill()


def heartbeat(store, number, **changes):
    """Let the heartbeat say something else."""
    name = f"_tuco/heartbeat-{number}.json"
    store.replace(name, json.dumps(json.loads(store.read(name)) | changes).encode())


def test_a_second_run_is_refused_while_the_first_is_alive(store):
    here = rf"process {os.getpid()} on {os.uname().nodename}"
    with claimed(store) as first:
        with pytest.raises(InputError, match=f"{store.where} is being written by {here}"), claimed(store):
            pass
        assert writer(store) == f"process {os.getpid()} on {os.uname().nodename}"
        assert not first.lost()
    assert writer(store) is None


def test_who_ended_is_no_obstacle(store):
    assert writer(store) is None
    for number in (1, 2, 3):
        with claimed(store, FOREVER) as claim:
            assert claim.number == number


def test_of_those_who_begin_at_once_one_does(store):
    def run(_):
        try:
            with claimed(store_at(store.where), 5.0) as claim:
                time.sleep(1.5)
                return claim.number
        except InputError:
            return None

    with ThreadPoolExecutor(8) as pool:
        numbers = [*pool.map(run, range(8))]
    assert sorted(filter(None, numbers)) == [1]


def test_a_process_of_this_machine_that_is_gone_need_not_be_watched(store):
    with driver(store) as process:
        assert process.stdout.readline() == "1\n"
        assert writer(store) == f"process {process.pid} on {os.uname().nodename}"
        with pytest.raises(InputError, match=f"process {process.pid} on"), claimed(store):
            pass
        process.kill()
        process.wait()
        assert writer(store, FOREVER) is None
        with claimed(store, FOREVER) as claim:
            assert claim.number == 2


def test_nor_one_that_has_its_number_by_chance(tmp_path):
    store = store_at(tmp_path)
    with claimed(store) as claim:
        claim._over.set()
        claim._thread.join()
        heartbeat(store, 1, started=1)
        with claimed(store, FOREVER) as second:
            assert second.number == 2


def test_another_machines_heartbeat_is_watched(store):
    """It stands still: after some beats the run is over. It moves: it is not, whatever the clocks say."""
    with claimed(store) as first:
        first._over.set()
        first._thread.join()
        heartbeat(store, 1, machine="another", host="elsewhere", pid=1)
        begun = time.monotonic()
        with claimed(store, 0.5) as second:
            assert (second.number, time.monotonic() - begun > 0.5) == (2, True)
            with pytest.raises(OutputError, match=f"another run has taken over {store.where}"):
                first.check()
            assert first.lost()
            with ThreadPoolExecutor(1) as pool:
                other = pool.submit(writer, store, FOREVER)
                time.sleep(0.1)
                heartbeat(store, 2, machine="another", host="elsewhere", pid=1)
                assert other.result()


def test_a_run_that_is_killed_before_its_first_beat(tmp_path):
    store = store_at(tmp_path)
    claim = {"pid": 1, "host": "elsewhere", "machine": "another", "started": 1}
    store.create("_tuco/epoch/0007.json", json.dumps(claim).encode())
    store.create("_tuco/epoch/0006.json", b"")
    with claimed(store, 0.2) as own:
        assert own.number == 8


def test_a_power_cut_may_tear_a_heartbeat_and_a_claim(tmp_path):
    store = store_at(tmp_path)
    store.create("_tuco/epoch/0001.json", b"")
    store.create("_tuco/heartbeat-1.json", b"[]")
    assert writer(store, 0.1) is None
    with claimed(store, 0.1) as own:
        assert own.number == 2


def test_a_run_that_was_asleep_sees_that_it_is_past(store):
    """A zombie: stopped as a machine that sleeps, taken over, and awake again."""
    with driver(store) as process:
        assert process.stdout.readline() == "1\n"
        process.send_signal(signal.SIGSTOP)
        with claimed(store, 0.5) as claim:
            assert claim.number == 2
            process.send_signal(signal.SIGCONT)
            assert process.stdout.readline() == "lost\n"
            assert process.wait() == 0
            claim.check()
            assert not claim.lost()


class Odd(LocalStore):
    """A store that loses the answer to what it creates."""

    def create(self, name, data):
        super().create(name, data)
        return False


def test_a_claim_whose_answer_is_lost(tmp_path):
    with claimed(Odd(tmp_path)) as claim:
        assert claim.number == 1


class Careless(LocalStore):
    """A store that ignores If-None-Match, as some that call themselves S3 do."""

    def create(self, name, data):
        self.replace(name, data)
        return True


def test_a_store_that_overwrites_is_refused(tmp_path):
    with pytest.raises(InputError, match="overwrites what it is told to keep"), claimed(Careless(tmp_path)):
        pass


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/nowhere"])
def test_where_nobody_can_write(tmp_path, out):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write to --out .*: "), claimed(store_at(tmp_path / out)):
        pass


def test_a_store_that_does_not_answer_a_while_ends_no_run(tmp_path, monkeypatch):
    with claimed(store_at(tmp_path)) as claim:
        with monkeypatch.context() as patch:
            for name in ("replace", "read"):
                patch.setattr(LocalStore, name, lambda *_: (_ for _ in ()).throw(OutputError("gone")))
            time.sleep(0.5)
        beat = json.loads(Path(tmp_path / "_tuco/heartbeat-1.json").read_text())["beat"]
        time.sleep(0.5)
        assert json.loads(Path(tmp_path / "_tuco/heartbeat-1.json").read_text())["beat"] > beat
        assert not claim.lost()
