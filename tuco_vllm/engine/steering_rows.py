"""The rows of the step that is about to run, where every part of the executor looks them up.

The runner's adapter (``steering_v1``, ``steering_v2``) prepares a step before vLLM builds attention metadata;
the metadata builders of PT's layers select by it; the model's forward takes it. Nothing of it is in the
forward's signature, so stock runners, torch.compile and CUDA graphs see a model like any other. Which graphs
a step may replay, ``step_graphs`` says.

Index spaces are ``step_plan``'s: T, U, S, C; M requests, L layers.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tuco_vllm.engine.compat import (
    CommonAttentionMetadata,
    CUDAGraphMode,
    VllmConfig,
    async_tensor_h2d,
    get_forward_context,
)
from tuco_vllm.engine.graph_rows import GraphRows, padded
from tuco_vllm.engine.row_pieces import Reading, RowPieces, readings_of_step
from tuco_vllm.engine.rows import every_token
from tuco_vllm.engine.scoring_rows import StepReads, prompt_rows_of_step, reads_of_step
from tuco_vllm.engine.step_graphs import graphs_of_step
from tuco_vllm.engine.step_plan import StepPlan, plan_step
from tuco_vllm.steering import Steering


class RowTensors(NamedTuple):
    """What the compiled model takes of a plan, on the device."""

    tokens_U: Tensor
    rows_S: Tensor
    rows_in_U: Tensor
    alpha_LS: Tensor
    scored_in_S: Tensor


class Step(NamedTuple):
    """What the requests of a step ask for. The default: nothing that FT alone could not give."""

    plan: StepPlan | None = None
    """None where no request needs PT beside FT."""
    readings: Sequence[Reading] = ()
    """What the step brings those who ask for rows of their prompts."""
    reads: StepReads | None = None
    """Of a step on a stream of PT's own; None of all others."""
    num_logits: int = 0
    """Rows of logits in such a step."""
    graphs: CUDAGraphMode = CUDAGraphMode.FULL
    """The most that it may replay (``step_graphs``)."""


class SteeringRows:
    """One engine's current step, the default between steps."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        self.device = vllm_config.device_config.device
        self.max_num_seqs: int = vllm_config.scheduler_config.max_num_seqs
        self.num_layers: int = vllm_config.model_config.hf_text_config.num_hidden_layers
        self.stacked = vllm_config.lora_config is not None
        """Whether PT's rows stand behind the tokens."""
        most: int = vllm_config.scheduler_config.max_num_batched_tokens
        self._graph_rows = GraphRows(most, self.num_layers, self.device)
        self._captures = False
        self.step = Step()

    def prepare(
        self,
        query_starts: NDArray[np.int32],
        num_logits: NDArray[np.int32],
        steerings: Sequence[Steering],
        computed: NDArray[Any],
        prompts: Sequence[tuple[RowPieces | None, int]],
    ) -> None:
        """Set the step that runs next, before its attention metadata is built.

        Of its N requests: where their tokens begin ``[N + 1]``, rows of logits, wishes, tokens computed
        before, and of those that ask for rows of their prompts what has come and how long these are.
        """
        asked, scheduled = [steering.rows for steering in steerings], np.diff(query_starts)
        graphs = self.graphs_of(scheduled, num_logits, steerings)
        if not any(asked):
            plan = plan_step(query_starts, num_logits, steerings, self.num_layers)
            self.step = Step(plan, graphs=graphs)
            return
        plan, reads = None, reads_of_step(asked, computed, scheduled)
        if reads is not None and not reads.of_ft:
            requests, starts = np.arange(len(asked)), np.concatenate([[0], np.cumsum(reads.counts)])
        else:
            num_rows = prompt_rows_of_step(asked, computed, scheduled)
            plan, reads = plan_step(query_starts, num_logits, steerings, self.num_layers, num_rows), None
            assert plan is not None  # rows need PT
            requests, starts = plan.requests_M, plan.scored_starts
        ends = computed + scheduled
        readings = readings_of_step(requests, starts, asked, prompts, ends, num_logits)
        self.step = Step(plan, readings, reads, int(num_logits.sum()), graphs)

    def graphs_of(self, scheduled: Any, num_logits: Any, steerings: Sequence[Steering]) -> CUDAGraphMode:
        """``step_graphs.graphs_of_step`` of this engine."""
        return graphs_of_step(scheduled, num_logits, steerings, stacked=self.stacked)

    def select(self, batch: CommonAttentionMetadata) -> tuple[CommonAttentionMetadata, Tensor] | None:
        """The batch of PT's rows (``rows.Selection``): M requests, their contexts and blocks, S queries."""
        plan = self.step.plan
        if self.step.reads is not None:
            return every_token(batch)
        if plan is None:
            return None
        requests_M = self.on_device(plan.requests_M)
        upper_bound = batch.seq_lens_cpu_upper_bound
        selected = batch.replace(
            query_start_loc=self.on_device(plan.query_starts),
            query_start_loc_cpu=torch.from_numpy(plan.query_starts),
            seq_lens=batch.seq_lens[requests_M],
            seq_lens_cpu_upper_bound=None if upper_bound is None else upper_bound[plan.requests_M],
            num_reqs=len(plan.requests_M),
            num_actual_tokens=len(plan.rows_S),
            max_query_len=int(np.diff(plan.query_starts).max()),
            block_table_tensor=batch.block_table_tensor[requests_M],
            slot_mapping=batch.slot_mapping[self.on_device(plan.tokens_U)],
            positions=None,
            is_prefilling=None,
            req_idx=None,
            _num_computed_tokens_cache=None,
            _token_to_req_indices_cache=None,
        )
        return selected, self.on_device(plan.rows_S)

    def count(self, requests: int) -> int:
        """PT's rows in the step that is being prepared, of so many requests."""
        return 0 if self.step.plan is None else len(self.step.plan.rows_S)

    def count_without_requests(self, num_tokens: int) -> int:
        """Rows of a run of no requests, ``for_profiling``'s; none on a CPU, where nothing is profiled."""
        return 0 if self.device.type == "cpu" else num_tokens - 2

    def take_step(self) -> Step:
        """Once: a dummy run must not find the last step's."""
        step, self.step = self.step, Step()
        return step

    def padded_size(self, step: Step, num_tokens: int) -> int | None:
        """T of the graphs that the step replays, where vLLM has chosen one and the step may; else None."""
        chosen = get_forward_context().cudagraph_runtime_mode == CUDAGraphMode.PIECEWISE
        return num_tokens if chosen and step.graphs == CUDAGraphMode.PIECEWISE else None

    def tensors(self, plan: StepPlan, size: int | None = None) -> RowTensors:
        """The plan's rows for the model; padded to ``size`` for graphs."""
        if size is not None:
            return RowTensors(**self._graph_rows.fill(plan, size))
        tensors = RowTensors(*(self.on_device(getattr(plan, name)) for name in RowTensors._fields))
        if len(tensors.alpha_LS) == self.num_layers:
            return tensors
        # Copies, not one row seen L times: what is compiled takes strides for granted.
        return tensors._replace(alpha_LS=tensors.alpha_LS.repeat(self.num_layers, 1))

    def for_profiling(self, num_tokens: int) -> RowTensors:
        """Rows of the most expensive step. What a compiler sees equal here it may take for one, and vLLM
        drops the guards that would object: so all sizes differ, and every tensor is its own."""

        def first(count: int) -> Tensor:
            return torch.arange(min(max(count, 2), num_tokens), device=self.device)

        count_S = num_tokens - 2
        return RowTensors(
            tokens_U=first(num_tokens - 1),
            rows_S=first(count_S),
            rows_in_U=first(count_S),
            alpha_LS=torch.zeros(self.num_layers, len(first(count_S)), device=self.device),
            scored_in_S=first(min(self.max_num_seqs, num_tokens - 3)),
        )

    @contextmanager
    def capturing(self) -> Iterator[None]:
        """While this is open, the runner captures graphs."""
        before, self._captures = self._captures, True
        try:
            yield
        finally:
            self._captures = before

    def capture(self, model: Any, input_ids: Any, positions: Tensor, embeds: Any) -> None:
        """Have the graphs of a ``SteeringModel`` for so many tokens recorded, where those of FT are."""
        context: Any = get_forward_context()
        is_piecewise = context.cudagraph_runtime_mode == CUDAGraphMode.PIECEWISE
        if not (self._captures and is_piecewise) or self.stacked:
            return
        rows = RowTensors(**self._graph_rows.fill(None, len(positions)))
        # Once without: while a graph is recorded, no kernel may be loaded.
        for mode in (CUDAGraphMode.NONE, CUDAGraphMode.PIECEWISE):
            context.cudagraph_runtime_mode = mode
            model(input_ids, positions, *rows, embeds)

    def by_logits(self, plan: StepPlan, norms_CN: Tensor) -> Tensor:
        """The norms of each row of logits, a copy; NaN without PT. Pad rows are left out."""
        scores = norms_CN.new_full((plan.num_logits, norms_CN.shape[1]), torch.nan)
        scores[self.on_device(plan.logits_C)] = norms_CN[self.on_device(plan.sampled_in_C)]
        return scores

    @contextmanager
    def slots_of(self, plan: StepPlan, layer_names: list[str], size: int | None = None) -> Iterator[None]:
        """While this is open, PT's layers write the keys and values of U tokens into those tokens' slots.

        With ``size`` the tokens are padded to it, for graphs. Without it none is replayed: one is recorded
        for a number of tokens T, which says nothing of U, S and C.
        """
        context: Any = get_forward_context()
        slots, mode = context.slot_mapping, context.cudagraph_runtime_mode
        if size is None:
            tokens_U = self.on_device(plan.tokens_U)
            chosen = {id(slots[name]): slots[name][tokens_U] for name in layer_names}
            context.cudagraph_runtime_mode = CUDAGraphMode.NONE
        else:
            tokens_T = self.on_device(padded(plan.tokens_U, size))
            chosen = {
                id(slots[name]): torch.where(tokens_T < 0, -1, slots[name][tokens_T]) for name in layer_names
            }
        context.slot_mapping = {**slots, **{name: chosen[id(slots[name])] for name in layer_names}}
        try:
            yield
        finally:
            context.slot_mapping, context.cudagraph_runtime_mode = slots, mode

    def on_device(self, values: Any) -> Tensor:
        """A numpy array on the device. By way of pinned memory: a copy out of any other may wait until the
        device has finished the step before, and scheduling ahead of it would be for nothing."""
        return async_tensor_h2d(values, device=self.device)
