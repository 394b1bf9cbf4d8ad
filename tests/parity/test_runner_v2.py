"""The same parity on Model Runner V2, the default on GPUs, run on a CPU (``v2_on_cpu``)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import torch
from cells import Cell
from truth import assert_close

# The interpreter is slow: few and short prompts, small steps.
CELLS = [Cell("llama", chunk=32), Cell("mistral", chunk=48), Cell("qwen3")]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.id)
def test_v2_matches_the_oracle(cell: Cell, pair_dirs, tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton's interpreter runs V2's kernels")
    pt, ft = pair_dirs(cell.pair, cell.dtype)
    prompts = tiny_models.prompts(10, longest=100)
    stem = prompts[1]
    rounds = [prompts, prompts, [stem[:n] + prompts[3] for n in (32, 33, 64)]]  # cold, warm, shared prefix
    spec = {
        "pt": pt,
        "ft": ft,
        "engine_args": {**cell.engine_args(), "max_num_seqs": 8},
        "rounds": rounds,
        "out": str(tmp_path / "norms.pt"),
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    command = [
        sys.executable,
        str(Path(tiny_models.__file__).with_name("v2_on_cpu.py")),
        str(tmp_path / "spec.json"),
    ]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env=dict(os.environ), check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    for prompts, norms in zip(rounds, torch.load(tmp_path / "norms.pt"), strict=True):
        assert_close(norms, (pt, ft), prompts, cell.dtype)
