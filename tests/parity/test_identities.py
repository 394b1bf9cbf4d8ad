"""What must hold whatever the weights: a model with itself, and engines that leave nothing behind."""

import time
from contextlib import suppress

import psutil
import pytest
import tiny_models
import tolerances
from truth import oracle

from tuco_vllm import TucoLLM
from tuco_vllm.errors import InputError
from tuco_vllm.prompt_checks import PromptError

ENGINE = {"enforce_eager": True, "max_model_len": tiny_models.MAX_LEN, "kv_cache_memory_bytes": 64 << 20}


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("dtype", tolerances.NOISE_FLOOR)
def test_a_model_with_itself_scores_nothing(dtype: str, pair_dirs) -> None:
    _, ft = pair_dirs("qwen3", dtype)
    with TucoLLM(ft, ft, **ENGINE, dtype=dtype) as llm:
        scores = llm.score(tiny_models.prompts(32))
    assert max(score.tuco for score in scores) <= tolerances.NOISE_FLOOR[dtype]


def test_python_api(pair_dirs) -> None:
    """Strings, ids and chats through TucoLLM: one input, one score; closing ends every process."""
    pt, ft = pair_dirs("llama", "float32")
    before = children()
    with TucoLLM(pt, ft, dtype="float32", **ENGINE) as llm:
        assert children() > before
        text = "the cat sat on the mat"
        chat = [{"role": "user", "content": text}]
        rendered = llm.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = [
            llm.tokenizer.encode(text),
            llm.tokenizer.encode(rendered, add_special_tokens=False),
        ]
        from_text, from_chat, *from_ids = llm.score([text, chat, *ids])
        assert [score.num_prompt_tokens for score in from_ids] == [len(i) for i in ids]
        for score, token_ids, truth in zip(
            (from_text, from_chat), ids, oracle(pt, ft).score_batch(ids), strict=True
        ):
            assert score.num_prompt_tokens == len(token_ids)
            assert score.tuco == pytest.approx(truth.tuco, abs=tolerances.TUCO_FLOAT32)
            assert score.beta_max == pytest.approx(truth.beta_max, abs=tolerances.TUCO_FLOAT32)
            assert score.ptc_norms == pytest.approx(truth.ptc_norms, rel=tolerances.NORMS_FLOAT32)
        for place, ours in enumerate((from_text, from_chat)):
            assert ours.tuco == pytest.approx(from_ids[place].tuco, abs=tolerances.TUCO_FLOAT32)
        assert llm.score([]) == []
        with pytest.raises(PromptError, match=r"prompt 1: .*257 tokens, the limit is 256"):
            llm.score(["fine", [5] * 257])
        with pytest.raises(InputError, match="list"):
            llm.score("a bare string")
        # A reader that stops early leaves nothing running; the engine goes on.
        stream = llm.score_stream((n, prompt) for n, prompt in enumerate(tiny_models.prompts(50)))
        assert next(stream)[0] == 0
        stream.close()
        assert llm.score([text])[0].tuco == pytest.approx(from_text.tuco, abs=tolerances.TUCO_FLOAT32)
    until = time.monotonic() + 20  # vLLM does not wait for the last of them
    while children() > before:
        assert time.monotonic() < until
        time.sleep(0.1)


def children() -> int:
    """Engine processes of this test session, and of no other on the machine."""
    count = 0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            count += any("VLLM::" in part for part in process.cmdline())
    return count


@pytest.mark.parametrize(
    ("argument", "value", "says"),
    [
        ("row_dtype", "float64", "row_dtype must be one of"),
        ("runner", "generate", "runner"),
        ("no_such_argument", 1, "no_such_argument"),
        ("task", "classify", "task"),
        ("max_alpha", float("nan"), "max_alpha"),
        ("min_alpha", 1.5, "min_alpha must be a finite number up to 1, not 1.5"),
    ],
)
def test_arguments_that_cannot_work_are_refused_at_once(argument, value, says, pair_dirs) -> None:
    with pytest.raises(InputError, match=says):
        TucoLLM(*pair_dirs("llama", "float32"), **{argument: value})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"task": "generate", "pipeline_parallel_size": 2}, "pipeline parallelism is for engines that score"),
        ({"task": "generate", "row_dtype": "float32"}, "in the model's dtype: leave row_dtype out"),
        ({"pipeline_parallel_size": 2, "enforce_eager": True}, "leave enforce_eager out"),
    ],
)
def test_what_does_not_go_together_is_refused_at_once(arguments, says, pair_dirs) -> None:
    with pytest.raises(InputError, match=says):
        TucoLLM(*pair_dirs("llama", "float32"), **arguments)
