"""The floor under a pair's scores: what is compared with what, and the reference on disk is the oracle."""

import json
from dataclasses import replace

import pytest
import tiny_models
import torch

from tuco_vllm.config import resolve_pair
from tuco_vllm.doctor.examination import SAMPLE_PROMPTS, SAMPLE_TOKENS, sample_of
from tuco_vllm.doctor.precision import compare
from tuco_vllm.errors import InputError
from tuco_vllm.oracle import Oracle
from tuco_vllm.prompts import load_tokenizer


def test_weights_on_disk_compute_the_same_bits(pair_dirs) -> None:
    pair, prompts = pair_dirs("qwen3", "bfloat16"), tiny_models.prompts(3)
    held, on_disk = (Oracle(*pair, dtype=torch.float32, from_disk=there) for there in (False, True))
    assert all(parameter.is_meta for parameter in on_disk.ft.parameters())
    assert torch.equal(held.norms(prompts), on_disk.norms(prompts))
    assert torch.equal(held.steer(prompts[0], 0.0)[0], on_disk.steer(prompts[0], 0.0)[0])


def test_errors_have_size_and_sign(pair_dirs) -> None:
    """Scores of 16 bits are off by what the oracle says, upward; scores by the reference itself are not."""
    pair, prompts = pair_dirs("llama", "float32"), tiny_models.prompts(4)
    oracle = Oracle(*pair)
    exact = compare(oracle.score_batch(prompts), prompts, oracle, "float64")
    assert exact.max_error == exact.norm_error == 0.0
    rough = Oracle(*pair, dtype=torch.bfloat16).score_batch(prompts)
    found = compare(rough, prompts, oracle, "bfloat16")
    by_hand = [a.tuco - b.tuco for a, b in zip(rough, oracle.score_batch(prompts), strict=True)]
    assert found.error.tolist() == pytest.approx(by_hand)
    assert found.mean_error == pytest.approx(sum(map(abs, by_hand)) / len(by_hand))
    assert found.bias == pytest.approx(sum(by_hand) / len(by_hand))
    assert found.norm_error > 1e-4


def test_an_error_of_the_scores_size_is_warned_of(pair_dirs) -> None:
    pair, prompts = pair_dirs("llama", "float32"), tiny_models.prompts(4)
    oracle = Oracle(*pair)
    scores = oracle.score_batch(prompts)
    assert "--dtype float32" not in compare(scores, prompts, oracle, "float32").verdict()
    scores = [replace(score, tuco=1.1 * score.tuco) for score in scores]
    assert "--dtype float32" in compare(scores, prompts, oracle, "bfloat16").verdict()


def test_a_sample_is_spread_over_the_file(pair_dirs, tmp_path) -> None:
    pair = resolve_pair(*pair_dirs("llama", "float32"))
    tokenizer = load_tokenizer(pair.ft.directory)
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"the cat sat {n}"} for n in range(100)] + [{"prompt": ""}, {"prompt": "a b " * 500}]
    file.write_text("\n".join(map(json.dumps, rows)))
    sample = sample_of(file, tokenizer, pair)
    assert len(sample) in range(SAMPLE_PROMPTS // 2, SAMPLE_PROMPTS + 1)
    assert max(map(len, sample)) < SAMPLE_TOKENS
    assert sample[0] == tokenizer.encode("the cat sat 0")
    file.write_text('{"prompt": ""}\n')
    with pytest.raises(InputError, match=r"no prompt of .* can be scored: the prompt is empty"):
        sample_of(file, tokenizer, pair)
