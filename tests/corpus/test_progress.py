"""What a person sees of engines: how many are ready, and what the others do or wait for."""

import time

from tuco_vllm.corpus import progress
from tuco_vllm.corpus.progress import ProgressLine, StartLine
from tuco_vllm.corpus.unit import Counts
from tuco_vllm.corpus.worker_process import WorkerProcess


def test_states_of_a_worker():
    worker = WorkerProcess(0)
    assert worker.state == "waiting"
    worker.node = "a machine"
    assert worker.state == "starting"
    worker.ready = True
    assert worker.state == "ready"
    worker.exclusive = True
    assert worker.state == "isolating"
    assert WorkerProcess(0, gone=True).state == "gone"


def test_the_line_says_what_engines_do_that_are_not_ready(capfd):
    states = {0: "ready"}
    with ProgressLine(10, Counts(), lambda: states) as line:
        line.show(Counts(rows=4), last=True)
        assert "1/1 engines, " in capfd.readouterr().err
        states |= {1: "waiting", 2: "ready", 3: "isolating", 4: "waiting"}
        line.show(Counts(rows=5), last=True)
    assert "2/5 engines (1 isolating, 2 waiting), " in capfd.readouterr().err


def test_a_cluster_without_room_is_waited_for_aloud(capfd, monkeypatch):
    monkeypatch.setattr(progress, "_START_SECONDS", 0.01)
    monkeypatch.setattr(progress, "_LOG_SECONDS", 0.0)
    states, starts = {0: "waiting", 1: "waiting"}, {}
    said = ""
    with StartLine(lambda: starts, lambda: states):
        while "tuco: waiting for a machine with room for an engine" not in said:
            time.sleep(0.01)
            said += capfd.readouterr().err
        states[0] = "starting"
        time.sleep(0.1)
        capfd.readouterr()
        time.sleep(0.1)
        assert "waiting" not in capfd.readouterr().err
        starts[0] = "3 s"
        while "tuco: engine starting for 3 s" not in said:
            time.sleep(0.01)
            said += capfd.readouterr().err
    assert "engine started in 3 s" in capfd.readouterr().err
