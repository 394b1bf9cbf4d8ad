"""A sweep by a real engine: what it says of every option is the oracle's, on the steered stream."""

from contextlib import nullcontext

import pyarrow.dataset as ds
import pytest
import steered
import tiny_models
import tolerances
from asking_models import write_rows
from engines import in_this_process
from truth import true_log_probs

from tuco_vllm import TucoLLM
from tuco_vllm.config import resolve_pair
from tuco_vllm.errors import InputError
from tuco_vllm.prompt_checks import PromptError
from tuco_vllm.sweep.run import SweepJob, run_sweep

ALPHAS = (0.0, 0.75, 1.0, 1.25)
RANGE = (1, 1)

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def served(pair_dirs):
    pair = pair_dirs("llama", "float32")
    with (
        in_this_process(),
        TucoLLM(
            *pair,
            task="generate",
            dtype="float32",
            enforce_eager=True,
            max_model_len=tiny_models.MAX_LEN,
            block_size=32,  # the default of 128 would cache none of these prompts
            kv_cache_memory_bytes=256 << 20,
            max_num_batched_tokens=96,  # prompts arrive in chunks
            max_num_seqs=64,
            seed=0,
        ) as llm,
    ):
        yield pair, llm


def truth(pair, prompt, tokens, alpha):
    return steered.logits(pair, prompt, alpha, [0]).log_softmax(dim=-1)[0, list(tokens)].tolist()


def test_log_probabilities_of_options_are_the_oracles(served):
    """Several alphas and a range, options of different number, prompts of one prefix, all in one batch."""
    pair, llm = served
    stem = steered.prompts(2, longest=50)[1]
    prompts = [*steered.prompts(8, longest=60, seed=3), *([*stem, token] for token in (7, 8, 9))]
    options = [[10, 20], [0, 1, 2, 3], [299, 5, 100]]
    scales = [*ALPHAS, steered.in_layers(0.5, *RANGE)]
    requests = [(p, options[n % 3], s) for s in scales for n, p in enumerate(prompts)]
    told = llm.next_logps(*(list(each) for each in zip(*requests, strict=True)))
    again = llm.next_logps(*(list(each) for each in zip(*requests, strict=True)))  # from the prefix cache
    for (prompt, tokens, scale), logps, warm in zip(requests, told, again, strict=True):
        assert logps == pytest.approx(truth(pair, prompt, tokens, scale), abs=tolerances.LOG_PROB_FLOAT32)
        assert warm == pytest.approx(logps, abs=tolerances.LOG_PROB_FLOAT32)
    at_1 = [(request, logps) for request, logps in zip(requests, told, strict=True) if request[2] == 1.0]
    for (prompt, tokens, _), logps in at_1:
        own = [float(true_log_probs(pair[1], tuple(prompt), (token,))[0]) for token in tokens]
        assert logps == pytest.approx(own, abs=tolerances.LOG_PROB_FLOAT32)
    by_scale = [told[place :: len(prompts)][:4] for place in range(4)]
    assert all(len({tuple(logps) for logps in each}) == len(ALPHAS) for each in by_scale)  # alpha matters


def test_a_sweep_says_what_the_oracle_would(served, tmp_path):
    pair, llm = served
    rows = [
        {"prompt": f"the cat {word}", "options": ["a", "s", "t"], "answer": 1}
        for word in ["on", "sat", "mat"]
    ]
    path = write_rows(tmp_path / "cats.jsonl", rows)
    job = SweepJob((path,), "jsonl", str(tmp_path / "out"), (0.0, 1.25), (RANGE, (0, llm.num_layers - 1)))
    run_sweep(job, resolve_pair(*pair), lambda _: nullcontext(llm))
    answers = ds.dataset(sorted(map(str, (tmp_path / "out").glob("answers-*")))).to_table().to_pylist()
    assert len(answers) == 3 * 2 * 3
    for row in answers:
        prompt = llm.tokenizer.encode(rows[row["row"]]["prompt"])
        tokens = [llm.tokenizer.encode(option)[0] for option in "ast"]
        scale = steered.in_layers(row["alpha"], row["first_layer"], row["last_layer"])
        true = truth(pair, prompt, tokens, scale)
        assert row["option_logps"] == pytest.approx(true, abs=tolerances.LOG_PROB_FLOAT32)
        assert row["prediction"] == true.index(max(true))


def test_what_no_engine_takes_is_refused_before_it_gets_there(served):
    _, llm = served
    with pytest.raises(InputError, match="prompt 1: alpha"):
        llm.next_logps([[5], [6]], [[1], [2]], [1.0, 9.0])
    with pytest.raises(PromptError, match="prompt 0: token id"):
        llm.next_logps([[10**6]], [[1]])
