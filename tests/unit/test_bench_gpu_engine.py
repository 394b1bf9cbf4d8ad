"""What bench/gpu.py's engines are asked and must answer, and that none outlives its parent."""

import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children, get_context
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.mark.parametrize(
    ("tokens", "rows", "way", "right"),
    [
        (8, None, "plain", True),
        (7, None, "plain", False),
        (8, 8, "plain", False),
        (8, 8, "scored", True),
        (8, 7, "scored", False),
        (8, None, "steered", True),
    ],
)
def test_a_completion_that_is_short_or_scored_unasked_does_not_pass(bench, tokens, rows, way, right):
    engine = bench("gpu_engine")
    cell = engine.Cell("", "generation", 32, 8, 1, output=8)
    completion = SimpleNamespace(token_ids=[1] * tokens, routed_experts=rows and [0] * rows)
    assert engine.as_asked([completion], cell, way) == right


def test_scores_that_are_not_finite_do_not_pass(bench):
    import torch

    engine = bench("gpu_engine")
    cell = engine.Cell("", "scoring", 32, 8, 1)
    good, last, first = [[1.0, 2.0, 3.0]], [[1.0, 2.0, float("nan")]], [[float("nan"), 2.0, 3.0]]
    for way, values, right in (
        ("tuco", good, True),
        ("tuco", last, True),  # a cosine with nothing
        ("tuco", first, False),
        ("stock", last, False),
    ):
        assert engine.as_asked(SimpleNamespace(data=torch.tensor(values)), cell, way) == right


def test_wishes_are_what_they_are_named_for(bench):
    wishes = bench("gpu_engine").WISHES
    assert wishes["scored"] == [(1.0, True)]
    assert len({alpha for alpha, _ in wishes["mixed"]}) == 64
    assert all(alpha != 1.0 and not scored for alpha, scored in wishes["steered"] + wishes["mixed"])


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def gone(pid):
    end = time.monotonic() + 20
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


def test_an_engines_process_ends_when_it_is_told_to(bench):
    process = ProcessPoolExecutor(1, get_context("spawn"), bench("gpu_engine").begin)
    pid = process.submit(os.getpid).result()
    assert alive(pid)
    [child] = [child for child in active_children() if child.pid == pid]
    child.kill()  # as gpu.end_engines does
    assert gone(pid)


def test_an_engines_process_ends_with_a_parent_that_is_killed(bench):
    program = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from gpu_engine import begin
if __name__ == "__main__":
    process = ProcessPoolExecutor(1, get_context("spawn"), begin)
    print(process.submit(os.getpid).result(), flush=True)
    process.submit(time.sleep, 600).result()
"""
    folder = Path(bench("gpu_engine").__file__).parent
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as parent:
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
    assert gone(pid)
