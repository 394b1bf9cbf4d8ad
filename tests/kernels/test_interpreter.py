"""The Triton kernels without a GPU: this folder's ``device`` tests, in Triton's interpreter."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_kernels_in_tritons_interpreter():
    # A process of its own: the switch must be set before Triton is imported, which torch and vLLM do.
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).parent)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "PYTEST_ADDOPTS": ""}
    session = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert session.returncode == 0, session.stdout + session.stderr
    outcome = session.stdout.splitlines()[-1]
    # All three files' tests ran, none was skipped: an empty session would prove nothing.
    assert int(re.search(r"(\d+) passed", outcome)[1]) >= 100, outcome
    assert "skipped" not in outcome, session.stdout
