"""Starts ``v2_on_cpu``, which needs a process of its own, and brings back what it saved."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch


def run_on_v2(directory: Path, spec: dict[str, Any]) -> Any:
    """What ``v2_on_cpu`` saves for ``spec`` (its ``main`` says what that holds)."""
    pytest.importorskip("triton", reason="Triton's interpreter runs V2's kernels")
    out = directory / "out.pt"
    (directory / "spec.json").write_text(json.dumps({**spec, "out": str(out)}))
    script = Path(__file__).with_name("v2_on_cpu.py")
    run = subprocess.run(
        [sys.executable, str(script), str(directory / "spec.json")],
        capture_output=True,
        text=True,
        timeout=600,
        env=dict(os.environ),
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return torch.load(out, weights_only=False)
