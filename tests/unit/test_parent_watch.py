"""No engine here: processes that stand for an owner, its EngineCore and a worker of that."""

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress

import psutil
import pytest

from tuco_vllm.engine.parent_watch import _parent_of, end_with_parent

TREE = """
import multiprocessing, os, sys, time
from tuco_vllm.engine.parent_watch import end_with_parent

def say(name):  # in one write: another process writes to the same pipe
    os.write(1, f"{name} {os.getpid()}\\n".encode())

def sleep(name):
    say(name)
    time.sleep(600)

def leaf(name):
    end_with_parent()
    end_with_parent()
    sleep(name)

def core(name, method):  # as vLLM's: it ends with its worker, and has no other way to notice a death
    worker = multiprocessing.get_context(method).Process(target=leaf, args=("worker",), daemon=True)
    worker.start()
    say(name)
    worker.join()

if __name__ == "__main__":
    method, deep = sys.argv[1:]
    context = multiprocessing.get_context(method)
    end_with_parent()  # nothing, in a process of its own
    arguments = ("core", method) if deep == "deep" else ("core",)
    context.Process(target=core if deep == "deep" else leaf, args=arguments, name="EngineCore").start()
    context.Process(target=sleep, args=("sibling",), daemon=True).start()  # a fork holds all of its pipes
    time.sleep(600)
"""


SERVER = """
import multiprocessing, os, time
import tuco_vllm.__main__  # the main module of a server, or what that imports first
from tuco_vllm.engine.parent_watch import own_engines

def say(name):
    os.write(1, f"{name} {os.getpid()}\\n".encode())

if __name__ == "__mp_main__" and "HANG" in os.environ:
    say("starting")
    time.sleep(600)  # imports, of a process that does not know yet what it is for

def core():
    say("core")
    os.environ["HANG"] = "here"
    context.Process(target=say).start()
    time.sleep(600)

context = multiprocessing.get_context("spawn")
if __name__ == "__main__":
    own_engines()
    context.Process(target=core).start()
    time.sleep(600)
"""


def runs(process):
    """A zombie does not: orphans stay that where the first process of a container does not wait for them."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.parametrize("deep", ["deep", "flat"])
def test_a_killed_owner_takes_its_engine_with_it(tmp_path, method, deep):
    script = tmp_path / "tree.py"
    script.write_text(TREE)
    command = [sys.executable, script, method, deep]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    children = {}
    try:
        for _ in range(3 if deep == "deep" else 2):
            name, pid = owner.stdout.readline().split()
            children[name] = psutil.Process(int(pid))
        time.sleep(1.5)
        assert all(runs(child) for child in children.values())
        owner.kill()
        owner.wait()
        sibling = children["sibling"]
        wait_until(lambda: not any(runs(child) for child in children.values() if child != sibling))
        assert runs(sibling)
    finally:
        for process in [owner, *children.values()]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        owner.communicate()


def test_a_killed_server_takes_processes_with_it_that_only_start(tmp_path):
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    owner = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    children = []
    try:
        for name in ("core", "starting"):
            said, pid = owner.stdout.readline().split()
            assert said == name
            children.append(psutil.Process(int(pid)))
        time.sleep(1.5)
        assert all(map(runs, children))
        owner.kill()
        owner.wait()
        wait_until(lambda: not any(map(runs, children)))
    finally:
        for process in [owner, *children]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        owner.communicate()


def test_a_process_of_its_own_is_not_watched():
    assert multiprocessing.parent_process() is None
    before = threading.active_count()
    end_with_parent()
    assert threading.active_count() == before


def test_parents_of_other_processes():
    assert _parent_of(os.getpid()) == os.getppid()
    assert _parent_of(2**30) is None


GONE_BEFORE = """
import multiprocessing, os, time
from tuco_vllm.engine.parent_watch import end_with_parent, name_starter

def worker():
    time.sleep(2)  # the weights' place: the owner is killed meanwhile
    end_with_parent()
    time.sleep(600)

def core():
    process = multiprocessing.get_context("spawn").Process(target=worker)
    process.start()
    os.write(1, f"{os.getpid()} {process.pid}\\n".encode())
    process.join()

if __name__ == "__main__":
    name_starter()
    engine = multiprocessing.get_context("spawn").Process(target=core, name="EngineCore")
    engine.start()
    engine.join()
"""


def test_an_owner_that_died_before_anybody_looked(tmp_path):
    """An EngineCore whose owner is killed while it starts belongs to nobody when its worker first looks."""
    script = tmp_path / "gone.py"
    script.write_text(GONE_BEFORE)
    owner = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in owner.stdout.readline().split()]
    owner.kill()
    owner.wait()
    if _parent_of(pids[0]) != 1:
        pytest.skip("orphans have another parent here than process 1")
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=30)
    for process in alive:
        process.kill()
    assert not alive


def test_a_command_outlives_the_script_that_started_it(tmp_path):
    """A script that has used an engine may leave `tuco serve` in the background."""
    script = (
        "import subprocess, sys\n"
        "from tuco_vllm.engine.parent_watch import name_starter\n"
        "name_starter()\n"
        "code = 'import tuco_vllm.__main__, time; time.sleep(30)'\n"
        "quiet = {'stdout': subprocess.DEVNULL, 'stderr': subprocess.DEVNULL}\n"
        "print(subprocess.Popen([sys.executable, '-c', code], **quiet).pid)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    command = psutil.Process(int(done.stdout))
    time.sleep(2.5)  # it would have looked twice by now
    assert command.is_running()
    command.kill()
