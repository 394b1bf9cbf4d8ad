"""Which rows of a step are read: of each request the last so many of its tokens in it.

Of a prompt that is the last token's row; of a response, or in a trace, the rows from some position on. A row
is known by its request's own positions, so chunks, cached prefixes and preemption change nothing: a chunk
brings those of its rows that are read, and a request that starts again brings them again (``row_pieces``).

Shape suffixes: T tokens of the batch, R rows.
"""

from collections.abc import Sequence
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
from tuco_vllm.engine.rows import every_token, last_tokens, rows_in
from tuco_vllm.engine.step_plan import ranges
from tuco_vllm.steering import FT_STREAM, ROWS, Asked


def rows_asked(params: Any) -> Asked | None:
    """What a request's PoolingParams ask for beside the last row; None where that is all."""
    kwargs = params.extra_kwargs or {}
    if not isinstance(kwargs.get(ROWS), Asked | None):
        kwargs[ROWS] = Asked.of(kwargs[ROWS])  # checked once, not every step
    return kwargs.get(ROWS)


def rows_of_step(
    asked: Sequence[Asked | None], computed: NDArray[Any], scheduled: NDArray[Any]
) -> NDArray[np.int64] | None:
    """How many rows each request has in a step, its last so many tokens; None where all have one.

    ``computed`` tokens came before the step, ``scheduled`` are in it. A request of which no row is read yet
    has one all the same, whose numbers nobody reads.
    """
    if not any(asked):
        return None
    ends = computed.astype(np.int64) + scheduled
    first = np.array([end - 1 if own is None else own.first for own, end in zip(asked, ends, strict=True)])
    return np.clip(ends - first, 1, scheduled)


def prompt_rows_of_step(
    asked: Sequence[Asked | None], computed: NDArray[Any], scheduled: NDArray[Any]
) -> NDArray[np.int64] | None:
    """The same in an engine that generates: 0 for requests that ask for none of their prompt's."""
    counts = rows_of_step(asked, computed, scheduled)
    return None if counts is None else np.where([wish is not None for wish in asked], counts, 0)


class StepReads(NamedTuple):
    """What is read in a step in which requests ask for more than their last row."""

    counts: NDArray[np.int64]
    """Rows of each request."""
    rows_R: NDArray[np.int64]
    """Their indices into the step's tokens."""
    targets_R: NDArray[np.int64]
    """Of each row the token whose log-probability is read, -1 where none is."""
    stream: str
    """What all its requests run on."""

    @property
    def of_ft(self) -> bool:
        """Whether that is FT's stream."""
        return self.stream == FT_STREAM


def reads_of_step(
    asked: Sequence[Asked | None], computed: NDArray[Any], scheduled: NDArray[Any]
) -> StepReads | None:
    """Of the requests of an engine that scores; None where all have one row and nothing else is read.

    RuntimeError for requests of two streams in one step (``own_steps``).
    """
    counts = rows_of_step(asked, computed, scheduled)
    if counts is None:
        return None
    ends = computed.astype(np.int64) + scheduled
    targets = [targets_of(wish, *ends_counts) for wish, *ends_counts in zip(asked, ends, counts, strict=True)]
    rows_R = ranges(np.cumsum(scheduled) - counts, counts)
    return StepReads(counts, rows_R, np.concatenate(targets), stream_of_step(asked))


def stream_of_step(asked: Sequence[Asked | None]) -> str:
    """What all of a step's requests run on."""
    streams = {FT_STREAM if wish is None else wish.stream for wish in asked}
    if len(streams) != 1:
        raise RuntimeError(f"a step has requests of the streams {', '.join(sorted(streams))}")
    return streams.pop()


def targets_of(wish: Asked | None, end: int, count: int) -> NDArray[np.int64]:
    """``[count]``: of a request's rows before ``end`` the targets, -1 where there is none."""
    targets_R = np.full(count, -1, dtype=np.int64)
    if wish is not None and wish.targets:
        first = end - count - wish.last
        own = np.array(wish.targets[max(first, 0) : max(first + count, 0)], dtype=np.int64)
        targets_R[max(-first, 0) :][: len(own)] = own
    return targets_R


class ScoringRows:
    """The rows of the batch that is about to run.

    ``reads`` is set by the runner's adapter (``scoring_v1``, ``scoring_v2``) for the step whose metadata is
    built next. Where it is None, each request has one row. Then they lie in a buffer whose address never
    changes: piecewise CUDA graphs replay by padded token count, so there R must be a function of it; the pad
    rows come last, where nobody reads them. With more rows no graph is replayed.
    """

    def __init__(self, vllm_config: VllmConfig) -> None:
        self.max_rows = vllm_config.scheduler_config.max_num_seqs
        self.device = vllm_config.device_config.device
        self.buffer = torch.zeros(self.max_rows, dtype=torch.long, device=self.device)
        self.reads: StepReads | None = None

    def take_reads(self) -> StepReads | None:
        """Once: a dummy run must not find the last step's."""
        reads, self.reads = self.reads, None
        return reads

    def select(self, batch: CommonAttentionMetadata) -> tuple[CommonAttentionMetadata, Tensor]:
        """The batch of these rows (``rows.Selection``)."""
        if self.reads is None:
            return last_tokens(batch)
        if not self.reads.of_ft:
            return every_token(batch)
        counts = self.reads.counts
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]).astype(np.int32)
        selected = batch.replace(
            query_start_loc=self.on_device(starts),
            query_start_loc_cpu=torch.from_numpy(starts),
            num_actual_tokens=int(starts[-1]),
            max_query_len=int(counts.max()),
            positions=None,
            is_prefilling=None,
            _num_computed_tokens_cache=None,
            _token_to_req_indices_cache=None,
        )
        ends = batch.query_start_loc_cpu.numpy()[1:].astype(np.int64)
        return selected, self.on_device(ranges(ends - counts, counts))

    def count(self, requests: int) -> int:
        """Rows of the step that is being prepared, of so many requests."""
        return requests if self.reads is None else int(self.reads.counts.sum())

    def count_without_requests(self, num_tokens: int) -> int:
        """Rows of a run of no requests: the dearest step's, in which every token is one. But for one, for as
        many rows as tokens a compiler might take for one size."""
        return max(num_tokens - 1, 1)

    def of_this_batch(self, num_tokens: int, layer_name: str, several: bool) -> Tensor:
        """``[R]`` int64, in batch order (then pad rows), as ``layer_name``'s metadata has them; ``several``
        says that they are no function of ``num_tokens``. Call outside compiled code."""
        context: Any = get_forward_context()
        metadata = context.attn_metadata
        if isinstance(metadata, list):
            raise RuntimeError("TuCo does not run under micro-batching (DBO)")
        if metadata is None:  # memory profiling and graph capture: no requests, only shapes
            return self._of_no_batch(num_tokens, context.cudagraph_runtime_mode)
        rows_R = rows_in(metadata[layer_name])
        if several:
            context.cudagraph_runtime_mode = CUDAGraphMode.NONE
            return rows_R.long()
        size = len(rows_R)
        if context.cudagraph_runtime_mode != CUDAGraphMode.NONE:
            size = max(size, self._padded(num_tokens))
            self.buffer[len(rows_R) : size].fill_(-1)  # padding, to the kernels
        self.buffer[: len(rows_R)].copy_(rows_R, non_blocking=True)
        return self.buffer[:size]

    def _of_no_batch(self, num_tokens: int, mode: CUDAGraphMode) -> Tensor:
        if mode != CUDAGraphMode.NONE:
            return self.buffer[: self._padded(num_tokens)].zero_()
        return torch.zeros(self.count_without_requests(num_tokens), dtype=torch.long, device=self.device)

    def _padded(self, num_tokens: int) -> int:
        return min(self.max_rows, num_tokens)

    def on_device(self, values: Any) -> Tensor:
        """A numpy array on the device."""
        return async_tensor_h2d(values, device=self.device)
