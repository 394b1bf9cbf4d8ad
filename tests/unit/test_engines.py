"""A test without the mark ``engine``, as this one, starts none: neither here nor in a process of its own."""

import subprocess
import sys

import pytest

from tuco_vllm import TucoLLM
from tuco_vllm.errors import EngineError

REASON = "a test that starts an engine is marked so"


def test_no_engine_starts_in_this_process(pair_dirs):
    with pytest.raises(EngineError, match=REASON):
        TucoLLM(*pair_dirs("llama", "float32"))


@pytest.mark.slow
def test_no_server_starts(pair_dirs):
    pt, ft = pair_dirs("llama", "float32")
    command = [sys.executable, "-m", "tuco_vllm", "serve", f"--pt={pt}", f"--ft={ft}", "--port=0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    assert REASON in done.stderr
