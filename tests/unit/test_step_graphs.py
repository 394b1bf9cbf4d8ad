"""Which graphs a step may replay, for each mix of requests; what the runners make of it; and graphs' rows."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tuco_vllm.engine import steering_rows
from tuco_vllm.engine.compat import CUDAGraphMode
from tuco_vllm.engine.graph_rows import GraphRows, zero_pad_rows
from tuco_vllm.engine.steering_rows import RowTensors, SteeringRows
from tuco_vllm.engine.step_graphs import GraphsV1, GraphsV2, graphs_of_step
from tuco_vllm.engine.step_plan import plan_step
from tuco_vllm.steering import PT_STREAM, Asked, Layers, Steering

FULL, PIECEWISE, NONE = CUDAGraphMode.FULL, CUDAGraphMode.PIECEWISE, CUDAGraphMode.NONE

LAYERS = 4
PLAIN, SCORED, STEERED = Steering(), Steering(1.0, True), Steering(0.5)
IN_LAYERS = Steering(0.5, False, None, Layers(1, 2))
SCORED_IN_LAYERS = IN_LAYERS._replace(scored=True)
ROWS = Steering(1.0, True, Asked(0, 3))
OWN_STREAM = Steering(1.0, True, Asked(3, 3, stream=PT_STREAM))

MIXES = {
    "plain": ([PLAIN, PLAIN], [1, 1], [1, 1], FULL),
    "plain prompts": ([PLAIN, PLAIN], [7, 1], [1, 1], FULL),
    "plain, speculated": ([PLAIN, PLAIN], [4, 4], [4, 4], FULL),
    "scored": ([SCORED, PLAIN], [1, 1], [1, 1], PIECEWISE),
    "steered": ([PLAIN, STEERED], [1, 1], [1, 1], PIECEWISE),
    "scored and steered": ([SCORED, STEERED, Steering(0.0, True)], [1, 1, 1], [1, 1, 1], PIECEWISE),
    "scored, drafts of some": ([SCORED, PLAIN], [1, 4], [1, 4], PIECEWISE),
    "steered, another's prompt": ([STEERED, PLAIN], [1, 7], [1, 1], NONE),
    "a scored prompt": ([SCORED, PLAIN], [7, 1], [1, 1], NONE),
    "a prompt, drafts": ([SCORED, PLAIN], [4, 5], [4, 4], NONE),
    "in some layers": ([IN_LAYERS, PLAIN], [1, 1], [1, 1], NONE),
    "in some layers, others in all": ([IN_LAYERS, SCORED], [1, 1], [1, 1], PIECEWISE),
    "in some layers, scored": ([SCORED_IN_LAYERS, PLAIN], [1, 1], [1, 1], PIECEWISE),
    "rows of a prompt": ([ROWS, PLAIN], [7, 1], [1, 1], NONE),
    "rows of a prompt, its last": ([ROWS, SCORED], [1, 1], [1, 1], NONE),
    "PT's own stream": ([OWN_STREAM], [4], [1], NONE),
    "PT's own stream, one token": ([OWN_STREAM], [1], [1], NONE),
}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("stacked", [False, True], ids=["pair", "adapters"])
def test_the_decision(mix, stacked) -> None:
    steerings, scheduled, num_logits, expected = MIXES[mix]
    if stacked and expected == PIECEWISE:
        expected = NONE  # PT's rows stand behind the tokens
    assert graphs_of_step(scheduled, num_logits, steerings, stacked=stacked) == expected


@pytest.mark.parametrize("mix", MIXES)
def test_a_graph_holds_pt_in_all_layers(mix) -> None:
    """What is compiled does: a step that runs PT in some must not be given its graph."""
    steerings, scheduled, num_logits, expected = MIXES[mix]
    if expected == PIECEWISE:
        plan = plan_step(np.cumsum([0, *scheduled]), num_logits, steerings, LAYERS)
        assert plan.pt_layers.tolist() == list(range(LAYERS))


@pytest.fixture
def rows() -> SteeringRows:
    config: Any = SimpleNamespace(
        device_config=SimpleNamespace(device=torch.device("cpu")),
        scheduler_config=SimpleNamespace(max_num_seqs=8, max_num_batched_tokens=16),
        model_config=SimpleNamespace(hf_text_config=SimpleNamespace(num_hidden_layers=LAYERS)),
        lora_config=None,
    )
    return SteeringRows(config)


def prepared(rows: SteeringRows, mix: str) -> None:
    steerings, scheduled, num_logits, _ = MIXES[mix]
    zeros = np.zeros(len(scheduled), dtype=np.int64)
    starts = np.cumsum([0, *scheduled]).astype(np.int32)
    rows.prepare(starts, np.array(num_logits), steerings, zeros, [(None, 4)] * len(scheduled))


class StockV1:
    def __init__(self, rows: SteeringRows) -> None:
        self.model = SimpleNamespace(rows=rows)

    def _determine_batch_execution_and_padding(self, force_uniform_decode=None, **kwargs):
        return force_uniform_decode

    def capture_model(self):
        return self.model.rows._captures

    profile_cudagraph_memory = capture_model


class StockV2(StockV1):
    """A batch of ``mix``, its requests in another order than the scheduler names them."""

    def __init__(self, rows: SteeringRows, mix: str) -> None:
        super().__init__(rows)
        self.steerings, scheduled, self.num_logits, _ = MIXES[mix]
        self.scheduled = np.array(scheduled)
        self.names = [f"request {place}" for place in range(len(scheduled))]
        asking = zip(self.names, self.steerings, strict=True)
        self.model_state = SimpleNamespace(steerings={n: s for n, s in asking if s.needs_pt})

    def gather_batch_req_state(self, scheduler_output, dummy_run):
        drafts = np.array(self.num_logits) - 1
        batch = SimpleNamespace(
            req_ids=self.names,
            num_scheduled_tokens=self.scheduled,
            num_draft_tokens_np=drafts if drafts.any() else None,
        )
        return None if dummy_run else batch, 1


@pytest.mark.parametrize("mix", MIXES)
def test_full_graphs_are_for_plain_steps(mix, rows) -> None:
    """In one the model's code does not run: the step would pass without PT."""
    v1 = type("V1", (GraphsV1, StockV1), {})(rows)
    prepared(rows, mix)
    is_plain = MIXES[mix][3] == FULL
    assert v1._determine_batch_execution_and_padding(num_tokens=2) is (None if is_plain else False)
    rows.take_step()
    assert v1._determine_batch_execution_and_padding(num_tokens=2) is None, "a dummy run"

    v2 = type("V2", (GraphsV2, StockV2), {})(rows, mix)
    batch, uniform = v2.gather_batch_req_state(None, False)
    assert batch.req_ids == v2.names
    assert uniform == (1 if is_plain else None)
    assert v2.gather_batch_req_state(None, True) == (None, 1)


def context_of(monkeypatch, mode: CUDAGraphMode, slots: Any = None) -> Any:
    context = SimpleNamespace(cudagraph_runtime_mode=mode, slot_mapping=slots)
    monkeypatch.setattr(steering_rows, "get_forward_context", lambda: context)
    return context


@pytest.mark.parametrize("mix", ["scored", "steered, another's prompt"])
@pytest.mark.parametrize("mode", [PIECEWISE, NONE])
def test_a_step_replays_what_vllm_chose_and_the_step_may(mix, mode, rows, monkeypatch) -> None:
    context_of(monkeypatch, mode)
    prepared(rows, mix)
    may = mode == MIXES[mix][3] == PIECEWISE
    assert rows.padded_size(rows.step, 8) == (8 if may else None)


def test_graphs_of_the_pair_are_captured_beside_fts(rows, monkeypatch) -> None:
    modes = []

    def model(input_ids, positions, *tensors):
        assert [t.shape[-1] for t in tensors[:-1]] == [len(positions)] * len(RowTensors._fields)
        modes.append(context.cudagraph_runtime_mode)

    tokens = torch.arange(8)
    context = context_of(monkeypatch, PIECEWISE)
    rows.capture(model, tokens, tokens, None)
    assert modes == [], "a plain step"
    runner = type("V1", (GraphsV1, StockV1), {})(rows)
    assert runner.capture_model()
    assert runner.profile_cudagraph_memory()
    assert not rows._captures
    with rows.capturing():
        rows.capture(model, tokens, tokens, None)
        assert modes == [NONE, PIECEWISE], "warm, then recorded"
        assert context.cudagraph_runtime_mode == PIECEWISE, "FT's are still to come"
        context.cudagraph_runtime_mode = NONE
        rows.capture(model, tokens, tokens, None)
        rows.stacked, context.cudagraph_runtime_mode = True, PIECEWISE
        rows.capture(model, tokens, tokens, None)
    assert len(modes) == 2


def test_rows_of_a_graph_are_of_its_size_and_stay_where_they_are(rows) -> None:
    buffers = GraphRows(16, LAYERS, "cpu")
    first = {name: tensor.data_ptr() for name, tensor in buffers.fill(None, 16).items()}
    for count, size in ((7, 8), (2, 4), (4, 4), (1, 1)):  # after more rows, fewer
        plan = plan_step(np.arange(count + 1), np.ones(count, int), [Steering(0.5, True)] * count, LAYERS)
        made = buffers.fill(plan, size)
        assert set(made) == set(RowTensors._fields)
        for name, tensor in made.items():
            assert tensor.data_ptr() == first[name], name
            assert tensor.is_contiguous(), name
            assert tensor.shape == ((LAYERS, size) if name == "alpha_LS" else (size,)), name
            if name != "alpha_LS":
                assert tensor.tolist() == [*range(count), *[-1] * (size - count)], name
        assert made["alpha_LS"][:, :count].eq(0.5).all()
        assert made["alpha_LS"][:, count:].eq(1).all()


def test_pad_tokens_write_no_keys(rows, monkeypatch) -> None:
    """Nor do those of plain requests."""
    slots = {"ft": torch.arange(100, 108), "pt": torch.arange(100, 108)}
    context = context_of(monkeypatch, PIECEWISE, slots)
    prepared(rows, "steered")  # the second of two requests
    with rows.slots_of(rows.step.plan, ["pt"], 8):
        assert context.slot_mapping["pt"].tolist() == [101, *[-1] * 7]
        assert context.slot_mapping["ft"].tolist() == slots["ft"].tolist()
        assert context.cudagraph_runtime_mode == PIECEWISE
    with rows.slots_of(rows.step.plan, ["pt"]):
        assert context.slot_mapping["pt"].tolist() == [101]
        assert context.cudagraph_runtime_mode == NONE
    assert context.slot_mapping is slots
    assert context.cudagraph_runtime_mode == PIECEWISE


def test_what_attention_leaves_out_is_zero() -> None:
    class Impl:
        def forward(self, layer, query, key, value, cache, metadata, output):
            if metadata is not None:
                output[: len(metadata.tuco_rows_R)] = 1
            return output

    attention = SimpleNamespace(impl=Impl())
    zero_pad_rows(attention)
    output = torch.full((4, 2), torch.nan)
    metadata = SimpleNamespace(tuco_rows_R=torch.arange(3))
    assert attention.impl.forward(attention, None, None, None, None, metadata, output=output) is output
    assert output[:, 0].tolist() == [1, 1, 1, 0]
    attention.impl.forward(attention, None, None, None, None, None, output=output)  # a profiling run


def test_scores_are_copies_without_pads(rows) -> None:
    plan = plan_step([0, 1, 2, 3], [1, 1, 1], [SCORED, PLAIN, SCORED], LAYERS)
    norms = torch.arange(8.0)[:, None].repeat(1, 2)
    scores = rows.by_logits(plan, norms)
    norms.fill_(-1)  # the next replay
    assert scores[[0, 2]].tolist() == [[0, 0], [1, 1]]
    assert scores[1].isnan().all()
