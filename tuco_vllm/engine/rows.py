"""Attention for some rows of a batch alone.

At alpha = 1 the pre-trained layers are needed in full only where a score is read: at a prompt's last token,
at the tokens of a response (``scoring_rows``; ``steering_rows`` has the rows of requests that steer). Their
keys and values, though, are needed for all T tokens. So an ``Attention`` module of ours is called with
``q[R]`` but ``k[T], v[T]``: vLLM writes K and V through the slot mapping of all T tokens, then runs the
backend on ``query[:num_actual_tokens]`` against the paged cache. All it takes is metadata that describes a
batch with those queries only, which the builder below derives from the batch's own metadata. The same
subclass scheme as vLLM's ``create_fast_prefill_custom_backend`` (vllm/v1/attention/backends/utils.py).

A chunk of a prompt that does not end it yields a row too, whose numbers nobody reads: one row is cheaper
than telling the two apart.

CUDA graphs: what holds and why
-------------------------------
Piecewise graphs only, and only for steps with one row a request. There attention, the cache's update
included, runs between the graphs, eagerly and by the step's own metadata, so that of the rows a graph holds
only their number R. A graph is found by the padded number of tokens T; so R is a function of T, and the rows
lie in a buffer that stays where it is (``ScoringRows``). It is filled on the stream that the graphs run on: a
step scheduled ahead of the one before overwrites it only when that one is done.

Pad rows are -1 and come last. As an index that is the last token, real or pad, and to the kernels it is no
row; attention stops at ``num_actual_tokens``, the real rows. What a pad row computes from there, stale
numbers or NaN, meets no other row, and the pooler cuts it off. Pad tokens have slot -1, which no cache takes.

A capture has as many rows: runner V1 gives it no metadata, V2 that of min(T, max_num_seqs) requests. The
norms that a graph returns lie in its own memory until the next replay; the forward pads them into a copy.

A full graph, or a breakable one, would also hold the Python around the layers and the metadata: the rows of
the batch it was captured with. In an engine that scores, ``AttentionCGSupport.NEVER`` makes vLLM take
PIECEWISE where it was told FULL_AND_PIECEWISE; the others are refused (``pair_config``). An engine that
generates has the full graphs that its backend has, of steps without a row of PT's (``step_graphs``).
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tuco_vllm.engine.compat import (
    AttentionBackend,
    AttentionCGSupport,
    CommonAttentionMetadata,
    VllmConfig,
    subclass_attention_backend,
)

_ROWS = "tuco_rows_R"
"""Attribute that the builder adds to its metadata: the rows' indices into the batch's T tokens."""


Selection = Callable[[CommonAttentionMetadata], tuple[CommonAttentionMetadata, Tensor] | None]
"""From a batch to the batch of its rows, and the rows' indices into T; None where a step needs no row."""


@cache
def rows_backend(backend: type[AttentionBackend], select: Selection) -> type[AttentionBackend]:
    """A backend that attends from the rows of ``select`` only.

    Raises ValueError for a backend that writes the KV cache inside its forward: there, K and V of the
    other tokens would be dropped.
    """
    if backend.forward_includes_kv_cache_update:
        raise ValueError(
            f"attention backend {backend.get_name()} writes its KV cache inside forward, so TuCo cannot "
            "query single rows with it: choose FLASH_ATTN, TRITON_ATTN or FLASHINFER (--attention-backend)"
        )
    stock_builder: Any = backend.get_builder_cls()

    class RowsBuilder(stock_builder):
        """Stock metadata for the batch that ``select`` makes of a batch."""

        # Where several KV-cache groups have one kind of layer, vLLM takes the first group's metadata and puts
        # the whole batch's block table and slots into it: those of requests that ``select`` leaves out too.
        supports_update_block_table = False

        @classmethod
        def get_cudagraph_support(cls, vllm_config: VllmConfig, kv_cache_spec: Any) -> AttentionCGSupport:
            if vllm_config.model_config.runner_type == "generate":  # no row is in a full graph
                support: AttentionCGSupport = super().get_cudagraph_support(vllm_config, kv_cache_spec)
                return support
            # A full graph would freeze the rows of the batch it was captured with.
            return AttentionCGSupport.NEVER

        def build_for_cudagraph_capture(self, common_attn_metadata: CommonAttentionMetadata) -> Any:
            if select(common_attn_metadata) is None:  # stock ones write into what they have built
                return None
            return super().build_for_cudagraph_capture(common_attn_metadata)

        def build(
            self,
            common_prefix_len: int,
            common_attn_metadata: CommonAttentionMetadata,
            fast_build: bool = False,
        ) -> Any:
            selected = select(common_attn_metadata)
            if selected is None:
                return None  # no layer on rows runs in this step
            batch, rows = selected
            metadata = super().build(common_prefix_len, batch, fast_build)
            setattr(metadata, _ROWS, rows)
            return metadata

    return subclass_attention_backend("TucoRows", backend, RowsBuilder)


def rows_in(metadata: Any) -> Tensor:
    """The rows' indices into T, of metadata that a ``rows_backend`` has built."""
    rows: Tensor = getattr(metadata, _ROWS)
    return rows


def last_tokens(batch: CommonAttentionMetadata) -> tuple[CommonAttentionMetadata, Tensor]:
    """Each request's last token: the selection for scoring prompts."""
    return one_token_queries(batch), batch.query_start_loc[1:] - 1


def every_token(batch: CommonAttentionMetadata) -> tuple[CommonAttentionMetadata, Tensor]:
    """The batch as it is: the selection for a stream of PT's own."""
    return batch, torch.arange(batch.num_actual_tokens, device=batch.query_start_loc.device)


def one_token_queries(batch: CommonAttentionMetadata) -> CommonAttentionMetadata:
    """The batch as its requests' last tokens alone: same contexts, same blocks, one query each."""
    count, dtype = batch.num_reqs + 1, batch.query_start_loc.dtype
    return batch.replace(
        query_start_loc=torch.arange(count, dtype=dtype, device=batch.query_start_loc.device),
        query_start_loc_cpu=torch.arange(count, dtype=dtype),
        num_actual_tokens=batch.num_reqs,
        max_query_len=1,
        positions=None,
        is_prefilling=None,
        _num_computed_tokens_cache=None,
        _token_to_req_indices_cache=None,
    )
