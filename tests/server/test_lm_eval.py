"""lm-evaluation-harness itself against `tuco serve`, with tiny tasks; skipped where it is not installed.

Both kinds of its requests: loglikelihoods of choices, and text until a stop string, here under an alpha.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import steered
from server.served import KEY, Server
from transformers import AutoTokenizer

from tuco_vllm.demo import FT, PT

pytest.importorskip("lm_eval", reason="pip install 'lm-eval[api]'")

PAIR = (str(PT), str(FT))
ALPHA, TOKENS, STOP = 0.5, 10, ","
CHOICES = [
    {"text": "The capital of France is", "choices": ["Paris", "a loaf of bread"], "answer": 0},
    {"text": "To bake bread one needs", "choices": ["seven elephants", "flour and water"], "answer": 1},
    {"text": "Monday comes before", "choices": ["Tuesday", "Monday, of course", "it"], "answer": 0},
]
TEXTS = [{"text": "How do I bake bread?", "answer": "With flour"}]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{answer}}}}"
"""
CHOOSE = """
output_type: multiple_choice
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITE = f"""
output_type: generate_until
generation_kwargs: {{until: ["{STOP}"], max_gen_toks: {TOKENS}}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Task -> what the harness recorded of each document."""
    folder = tmp_path_factory.mktemp("harness")
    for name, rest, rows in (("choose", CHOOSE, CHOICES), ("write", WRITE, TEXTS)):
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=data) + rest)
    server = Server(PAIR, folder / "log")
    try:
        server.wait()
        # By its path the model's tokenizer is found too.
        model = f"model={FT},base_url={server.url}/v1/completions,num_concurrent=4,max_length=256"
        command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions"]
        command += ["--model_args", model, "--tasks", "choose,write", "--include_path", str(folder)]
        command += ["--gen_kwargs", f"temperature=0,alpha={ALPHA}"]
        command += ["--output_path", str(folder / "out"), "--log_samples"]
        environment = os.environ | {"OPENAI_API_KEY": KEY, "HF_HOME": str(folder / "cache")}
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=400, env=environment, check=False
        )
        assert run.returncode == 0, run.stderr[-3000:]
    finally:
        server.stop()
    return {name: recorded(folder / "out", name) for name in ("choose", "write")}


def recorded(folder: Path, name: str):
    [file] = folder.rglob(f"samples_{name}_*.jsonl")
    return sorted(map(json.loads, file.read_text().splitlines()), key=lambda sample: sample["doc_id"])


def encoded(text: str) -> list[int]:
    return AutoTokenizer.from_pretrained(FT)(text, add_special_tokens=False).input_ids


def test_loglikelihoods_are_the_fine_tuned_models(samples):
    for sample in samples["choose"]:
        asked = list(sample["arguments"].values())
        for given, [[logprob, is_greedy]] in zip(asked, sample["resps"], strict=True):
            prompt, whole = encoded(given["arg_0"]), encoded(given["arg_0"] + given["arg_1"])
            tokens = whole[len(prompt) :]
            logits = steered.logits(PAIR, prompt, 1.0, tokens)
            true = logits.log_softmax(dim=-1)[range(len(tokens)), tokens].sum().item()
            assert float(logprob) == pytest.approx(true, rel=1e-5)
            assert (is_greedy == "True") == (logits.argmax(dim=-1).tolist() == tokens)


def test_a_text_is_that_of_its_alpha(samples):
    tokenizer, [sample], [row] = AutoTokenizer.from_pretrained(FT), samples["write"], TEXTS
    [[text]] = sample["resps"]
    written, plain = (
        tokenizer.decode(steered.greedy(PAIR, encoded(row["text"]), alpha, TOKENS)) for alpha in (ALPHA, 1.0)
    )
    assert STOP in written
    assert text == written.split(STOP)[0] != plain.split(STOP)[0]
