"""Rows of a batch: where prompts end, and the metadata of one-token queries derived from a batch's own."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tuco_vllm.engine.compat import AttentionCGSupport, CommonAttentionMetadata
from tuco_vllm.engine.rows import last_tokens, one_token_queries, rows_backend


def batch(lengths: list[int], contexts: list[int]) -> CommonAttentionMetadata:
    """A batch of prefill chunks of ``lengths`` tokens that end at ``contexts`` tokens of their requests."""
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    return CommonAttentionMetadata(
        query_start_loc=starts,
        query_start_loc_cpu=starts,
        seq_lens=torch.tensor(contexts, dtype=torch.int32),
        num_reqs=len(lengths),
        num_actual_tokens=sum(lengths),
        max_query_len=max(lengths),
        max_seq_len=max(contexts),
        block_table_tensor=torch.zeros(len(lengths), 4, dtype=torch.int32),
        slot_mapping=torch.arange(sum(lengths)),
    )


def test_one_token_queries_keep_contexts_and_blocks() -> None:
    whole = batch([3, 1, 5], [3, 9, 5])
    whole.compute_num_computed_tokens()  # fills a cache that would be wrong for the rows
    rows = one_token_queries(whole)
    assert rows.query_start_loc.tolist() == rows.query_start_loc_cpu.tolist() == [0, 1, 2, 3]
    assert rows.query_start_loc.dtype == whole.query_start_loc.dtype
    assert (rows.num_actual_tokens, rows.max_query_len, rows.num_reqs) == (3, 1, 3)
    assert rows.seq_lens is whole.seq_lens
    assert rows.block_table_tensor is whole.block_table_tensor
    assert rows.compute_num_computed_tokens().tolist() == [2, 8, 4]  # all but the row itself
    assert whole.num_actual_tokens == 9  # the batch itself is as it was


class Builder:
    """Stands for a backend's metadata builder."""

    @classmethod
    def get_cudagraph_support(cls, vllm_config: Any, kv_cache_spec: Any) -> AttentionCGSupport:
        return AttentionCGSupport.UNIFORM_BATCH

    def build_for_cudagraph_capture(self, common: CommonAttentionMetadata) -> Any:
        metadata = self.build(0, common)
        metadata.seq_lens = 1  # as Triton's does
        return metadata

    def build(self, common_prefix_len: int, common: CommonAttentionMetadata, fast_build: bool = False) -> Any:
        return SimpleNamespace(built_for=common)


def backend(*, writes_in_forward: bool) -> Any:
    return type(
        "SomeBackend",
        (),
        {
            "forward_includes_kv_cache_update": writes_in_forward,
            "get_name": staticmethod(lambda: "SOME_ATTN"),
            "get_builder_cls": staticmethod(lambda: Builder),
        },
    )


def test_the_backend_builds_for_rows_and_says_where_they_are() -> None:
    stock = backend(writes_in_forward=False)
    ours = rows_backend(stock, last_tokens)
    assert rows_backend(stock, last_tokens) is ours  # vLLM groups layers by backend class
    assert issubclass(ours, stock)
    assert ours.__qualname__ != stock.__qualname__
    builder = ours.get_builder_cls()
    metadata = builder().build(0, batch([3, 1, 5], [3, 9, 5]))
    assert metadata.tuco_rows_R.tolist() == [2, 3, 8]
    assert metadata.built_for.max_query_len == 1


@pytest.mark.parametrize(
    ("runner", "support"),
    [("pooling", AttentionCGSupport.NEVER), ("generate", AttentionCGSupport.UNIFORM_BATCH)],
)
def test_full_graphs_are_for_engines_that_generate(runner, support) -> None:
    builder = rows_backend(backend(writes_in_forward=False), last_tokens).get_builder_cls()
    config = SimpleNamespace(model_config=SimpleNamespace(runner_type=runner))
    assert builder.get_cudagraph_support(config, None) is support


def test_a_backend_that_would_drop_keys_is_refused() -> None:
    with pytest.raises(ValueError, match="SOME_ATTN writes its KV cache inside forward"):
        rows_backend(backend(writes_in_forward=True), last_tokens)


def test_a_step_without_rows_builds_nothing() -> None:
    builder = rows_backend(backend(writes_in_forward=False), lambda batch: None).get_builder_cls()
    assert builder().build(0, batch([3], [3])) is None
    assert builder().build_for_cudagraph_capture(batch([3], [3])) is None
