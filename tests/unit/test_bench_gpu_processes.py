"""The processes of bench/gpu.py: they answer, they fail loudly, and none outlives its parent."""

import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.fixture
def plan(bench):
    return bench("gpu_plan")


def running(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def gone(pids):
    end = time.monotonic() + 20
    while any(map(running, pids)) and time.monotonic() < end:
        time.sleep(0.1)
    return not any(map(running, pids))


@pytest.fixture
def sleeper(bench, plan):
    """A process that has started another one, as an engine does; and both ids."""
    processes = bench("gpu_processes")
    member = processes.Member("sleeper", subprocess.Popen, ["sleep", "600"])
    try:
        member.wait_until_ready(plan.Deadline(1))
        yield member, [member._process.pid, member.ask(plan.Deadline(1), "__getattribute__", "pid")]
    finally:
        member.kill()


def test_a_process_answers_and_is_killed_with_what_it_started(plan, sleeper):
    member, pids = sleeper
    assert member.ask(plan.Deadline(1), "poll") is None
    with pytest.raises(plan.OutOfTime):
        member.ask(plan.Deadline(0.5 / 60), "wait")
    assert all(map(running, pids))
    member.kill()
    assert gone(pids)


def test_a_failure_is_told_and_ends_the_process(bench, plan, sleeper):
    member, pids = sleeper
    with pytest.raises(bench("gpu_processes").Failed, match="no attribute 'nothing'"):
        member.ask(plan.Deadline(1), "nothing")
    assert gone(pids)


def test_processes_end_when_their_parent_is_killed(bench, plan):
    """The parent is a process of its own here, killed as ``timeout -s KILL`` would."""
    program = """
import subprocess, sys, time
from gpu_plan import Deadline
from gpu_processes import Member
if __name__ == "__main__":
    member = Member("sleeper", subprocess.Popen, ["sleep", "600"])
    member.wait_until_ready(Deadline(1))
    print(member._process.pid, member.ask(Deadline(1), "__getattribute__", "pid"), flush=True)
    time.sleep(600)
"""
    folder = Path(bench("gpu_processes").__file__).parent
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()
    assert gone(pids)
