"""What an engine's processes tell of its start reaches whoever started it, and disturbs nobody else."""

import os
import re
import subprocess
import sys

from tuco_vllm.engine.start_stages import Start, explain, tell

ENGINE = """
from tuco_vllm.engine.start_stages import tell
tell("weights")
tell("compile")
tell("weights")  # another rank
"""


def test_stages_of_other_processes_are_heard_once_and_in_order():
    with Start() as start:
        assert re.fullmatch(r"\d+ s: processes \d+ s", start.text())
        explain("compiled: why")
        subprocess.run([sys.executable, "-c", ENGINE], check=True)
        running = start.text()
    assert re.fullmatch(r"\d+ s: processes \d+ s, weights 0 s, compile \d+ s \(compiled: why\)", running)
    ended = start.text()
    tell("too late")
    with Start() as again:
        tell("another's")
    assert start.text() == ended
    assert "another's" in again.text()


def test_where_nobody_listens_nothing_happens(monkeypatch, tmp_path):
    tell("weights")
    monkeypatch.setenv("TUCO_START_STAGES", f"/proc/{os.getpid()}/fd/9999")
    tell("weights")
    monkeypatch.setenv("TUCO_START_STAGES", str(tmp_path))
    tell("weights")
