"""What the pooler hands to a runner: one tensor for all prompts, views of one tensor beside responses."""

from types import SimpleNamespace

import pytest
import torch
from vllm import PoolingParams

from tuco_vllm.engine.pooler import ContributionPooler
from tuco_vllm.steering import ROWS, Asked

LAYERS = 2


def metadata(asked, ends, scheduled):
    return SimpleNamespace(
        pooling_params=[
            PoolingParams(task="classify", extra_kwargs=None if wish is None else {ROWS: list(wish)})
            for wish in asked
        ],
        pooling_cursor=SimpleNamespace(
            seq_lens_cpu=torch.tensor(ends), num_scheduled_tokens_cpu=torch.tensor(scheduled)
        ),
        pooling_states=[SimpleNamespace() for _ in asked],
    )


@pytest.mark.parametrize("fetch", [False, True])
def test_prompts_alone_are_one_tensor(fetch):
    pooler = ContributionPooler()
    pooler.fetch = fetch
    norms = torch.randn(8, 7 * LAYERS)
    pooled = pooler(norms, metadata([None] * 3, [4, 5, 9], [4, 2, 2]))
    assert torch.is_tensor(pooled)
    assert torch.equal(pooled, norms[:3].view(3, LAYERS, 7))


def test_beside_a_response_all_are_cut_from_one_tensor():
    """A prompt of one row, then a response whose rows are the prompt's last and two more."""
    norms = torch.rand(4, 7 * LAYERS)
    pooled = ContributionPooler()(norms, metadata([None, Asked(2, 2)], [4, 5], [4, 5]))
    assert torch.equal(pooled[0], norms[0].view(LAYERS, 7))
    of_last, tucos = pooled[1].split([7 * LAYERS, 3])
    assert torch.equal(of_last, norms[1])
    last = norms[1:].view(3, LAYERS, 7)[:, -1]
    torch.testing.assert_close(tucos, last[:, 3] / (last[:, 2] + last[:, 3]))
    assert pooled[0].untyped_storage().data_ptr() == pooled[1].untyped_storage().data_ptr()
