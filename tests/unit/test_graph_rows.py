"""The rows that piecewise CUDA graphs read: as many as the padded batch says, always at one address."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tuco_vllm.engine import scoring_rows
from tuco_vllm.engine.compat import CUDAGraphMode
from tuco_vllm.engine.scoring_rows import ScoringRows

MAX_ROWS = 8


@pytest.fixture
def scoring() -> ScoringRows:
    config: Any = SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_seqs=MAX_ROWS), device_config=SimpleNamespace(device="cpu")
    )
    return ScoringRows(config)


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch):
    """Sets the forward context to a step's: its rows (None: no metadata) and its graph mode."""

    def enter(found: list[int] | None, mode: CUDAGraphMode) -> None:
        metadata = SimpleNamespace(tuco_rows_R=torch.tensor(found or [], dtype=torch.int32))
        context = SimpleNamespace(
            attn_metadata=None if found is None else {"layer": metadata}, cudagraph_runtime_mode=mode
        )
        monkeypatch.setattr(scoring_rows, "get_forward_context", lambda: context)

    return enter


@pytest.mark.parametrize("tokens", [1, 2, 5, 8, 9, 64])
def test_a_replay_has_as_many_rows_as_its_capture(tokens, scoring, step) -> None:
    captured = min(tokens, MAX_ROWS)
    step(None, CUDAGraphMode.PIECEWISE)  # runner V1 captures without metadata
    assert len(scoring.of_this_batch(tokens, "layer", False)) == captured
    step(list(range(captured)), CUDAGraphMode.PIECEWISE)  # runner V2 with a dummy batch's
    assert scoring.of_this_batch(tokens, "layer", False).tolist() == list(range(captured))
    for count in range(1, captured + 1):
        step([7 * row for row in range(count)], CUDAGraphMode.PIECEWISE)
        found = scoring.of_this_batch(tokens, "layer", False)
        assert found.tolist() == [7 * row for row in range(count)] + [-1] * (captured - count)
        assert found.data_ptr() == scoring.buffer.data_ptr()


def test_without_a_graph_there_are_no_pad_rows(scoring, step) -> None:
    step([3, 4, 5, 6], CUDAGraphMode.PIECEWISE)
    scoring.of_this_batch(8, "layer", False)
    step([9], CUDAGraphMode.NONE)
    assert scoring.of_this_batch(64, "layer", False).tolist() == [9]


def test_micro_batches_are_refused(scoring, monkeypatch) -> None:
    context = SimpleNamespace(attn_metadata=[{}, {}], cudagraph_runtime_mode=CUDAGraphMode.NONE)
    monkeypatch.setattr(scoring_rows, "get_forward_context", lambda: context)
    with pytest.raises(RuntimeError, match="micro-batching"):
        scoring.of_this_batch(8, "layer", False)
