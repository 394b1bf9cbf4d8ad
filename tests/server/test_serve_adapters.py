"""`tuco serve` of a base and adapters: which model a request names is which FT it gets, and whose scores a
calibration judges."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import steered
import tiny_models
import tolerances
from server.served import Server
from tiny_adapters import make_adapter
from truth import true_norms, true_output_co, tuco

from tuco_vllm.config import resolve_pair
from tuco_vllm.prompts import PromptEncoder, load_tokenizer
from tuco_vllm.records import LAYERS

pytestmark = pytest.mark.engine

GREEDY = {"max_tokens": 6, "temperature": 0.0, "ignore_eos": True, "return_token_ids": True}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server, its log, and of each of its models' names the pair that judges it."""
    root = tmp_path_factory.mktemp("adapters")
    tiny_models.make_pair("llama", root)
    base = str(root / "ft")
    one, two = (make_adapter(base, root / name, 40 + n) for n, name in enumerate(("one", "two")))
    flag = calibration(root / "flags.json", (base, one.adapter), (base, one.merged))
    server = Server(
        (base, one.adapter), root / "log", f"--lora-modules=second={two.adapter}", f"--flag={flag}"
    )
    try:
        server.wait()
        yield server, {"adapter": (base, one.merged), "second": (base, two.merged), "ft": (base, base)}
    finally:
        server.stop()


JUDGED = steered.prompts(6, longest=60, seed=22)


def calibration(path, pair, judges):
    """A file that flags half of JUDGED, and every chat."""
    resolved = resolve_pair(*pair)
    template = PromptEncoder(load_tokenizer(resolved.ft.tokenizer_directory)).template_sha256
    threshold = float(np.median(tuco(true_norms(judges, JUDGED))))  # of an even number: between two
    thresholds = {None: threshold, template: 0.0}
    content = {
        "format": "tuco calibration",
        "version": 1,
        "pair": {
            role: {"name": role, "fingerprint": checkpoint.fingerprint}
            for role, checkpoint in (("pt", resolved.pt), ("ft", resolved.ft))
        },
        **{"dtype": "float32", "row_dtype": "float32", "column": "tuco", "direction": "above", "fpr": 0.5},
        "templates": [
            {"template": name, "buckets": [{"tokens": [1, 60], "threshold": value}]}
            for name, value in thresholds.items()
        ],
    }
    path.write_text(json.dumps(content))
    return path


def complete(server, **fields):
    with server.client() as client:
        answer = client.post("/v1/completions", json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def test_each_model_is_its_own_ft(served):
    """At once, with every alpha, over shared prefixes; the base's name is PT itself, whose TuCo is 0."""
    server, pairs = served
    prompts, alphas = steered.requests(24, longest=80, seed=21)
    names = [list(pairs)[n % 3] for n in range(24)]
    with ThreadPoolExecutor(8) as pool:
        for tuco_asked in ("layers", None):
            wishes = [
                {"model": name, "prompt": prompt, "alpha": alpha, "tuco": tuco_asked, **GREEDY}
                for name, prompt, alpha in zip(names, prompts, alphas, strict=True)
            ]
            choices = list(pool.map(lambda wish: complete(server, **wish), wishes))
            for name, wish, choice in zip(names, wishes, choices, strict=True):
                request = wish["prompt"], wish["alpha"], choice["token_ids"]
                steered.assert_greedy(pairs[name], *request)
                if tuco_asked and name != "ft":  # 0/0 of a pair without a difference is no error
                    scores = choice["tuco"]["layers"]
                    norms = np.array([scores[layer] for layer in LAYERS]).transpose(1, 2, 0)
                    steered.assert_scored(pairs[name], *request, norms)
                elif tuco_asked:
                    assert set(choice["tuco"]["tokens"]) == {0.0}


def test_who_names_no_model_gets_ft(served):
    server, pairs = served
    [prompt] = steered.prompts(1, longest=30, seed=23)
    for none in ({}, {"model": None}, {"model": ""}):
        choice = complete(server, prompt=prompt, alpha=0.5, **none, **GREEDY)
        steered.assert_greedy(pairs["adapter"], prompt, 0.5, choice["token_ids"])
        plain = complete(server, prompt=prompt, **none, **GREEDY)
        steered.assert_greedy(pairs["adapter"], prompt, 1.0, plain["token_ids"])


def test_scores_are_of_the_model_that_is_named(served):
    server, pairs = served
    prompts = steered.prompts(6, longest=60, seed=22)
    with server.client() as client:
        for name, pair in {**pairs, None: pairs["adapter"]}.items():
            fields = {"model": name, "input": prompts, "output_co": True}
            answer = client.post("/v1/tuco/score", json=fields).json()
            assert answer["model"] == (name or "adapter")
            truth = [0.0] * len(prompts) if name == "ft" else tuco(true_norms(pair, prompts)).tolist()
            found = [entry["tuco"] for entry in answer["data"]]
            assert found == pytest.approx(truth, abs=tolerances.TUCO_FLOAT32)
            outputs = [true_output_co(pair, tuple(prompt)) for prompt in prompts]
            found = [entry["output_co"] for entry in answer["data"]]
            assert found == pytest.approx(outputs, abs=tolerances.OUTPUT_CO_FLOAT32)
        assert client.post("/v1/tuco/score", json={"model": "third", "input": "a"}).status_code == 404


def test_rewards_are_of_both(served):
    server, _ = served
    fields = {"input": "the cat", "response": " sat on the mat", "relative_reward": True}
    with server.client() as client:
        of = {
            name: client.post("/v1/tuco/score", json={"model": name, **fields}).json()["data"][0]["response"]
            for name in ("adapter", "second", "ft")
        }
    assert of["adapter"]["logps_pt"] == pytest.approx(of["second"]["logps_pt"], abs=1e-5)
    assert of["ft"]["logps_ft"] == pytest.approx(of["adapter"]["logps_pt"], abs=1e-5)
    assert of["adapter"]["logps_ft"] != pytest.approx(of["second"]["logps_ft"], abs=1e-2)


def test_the_list_of_models(served):
    server, _ = served
    with server.client() as client:
        entries = client.get("/v1/models").json()["data"]
    assert entries[0]["id"] == "adapter", "who takes the first takes FT"
    named = {entry["id"]: entry["tuco"]["ft"] for entry in entries}
    assert named["adapter"] == "adapter"
    assert named["second"] == "second"
    assert named["ft"] == server.pair[0]


def test_a_calibration_judges_the_pairs_own_ft_whoever_asks(served):
    server, pairs = served
    names = ("tuco:checked_total", "tuco:flagged_total")

    def counted(ask, *given, **fields):
        before = [server.metric(name) for name in names]
        answer = ask(*given, **fields)
        return answer, [server.metric(name) - old for name, old in zip(names, before, strict=True)]

    def all_judged(**fields):
        return [complete(server, prompt=prompt, **fields) for prompt in JUDGED]

    truth = tuco(true_norms(pairs["adapter"], JUDGED)).numpy()
    expected = (truth > np.median(truth)).tolist()
    assert sum(expected) == 3
    for asked in (True, False):
        fields = {"tuco": asked, **GREEDY}
        choices, counts = counted(all_judged, **fields)
        assert counts == [6, 3]
        said = [choice["tuco"]["flagged"] if asked else "tuco" in choice for choice in choices]
        assert said == (expected if asked else [False] * 6)
    for name in ("second", "ft"):
        choice, counts = counted(complete, server, model=name, prompt=JUDGED[1], tuco=True, **GREEDY)
        assert (choice["tuco"]["flagged"], counts) == (None, [0, 0])
    chat = [{"role": "user", "content": "the cat"}]
    routes = {
        "/v1/chat/completions": ({"messages": chat, "max_tokens": 2, "n": 2, "stream": True}, 2),
        "/v1/chat/completions/batch": ({"messages": [chat, chat], "max_tokens": 2}, 2),
        "/v1/responses": ({"input": "the cat", "max_output_tokens": 2}, 1),
        "/v1/messages": ({"messages": chat, "max_tokens": 2}, 1),
    }
    for path, (body, count) in routes.items():
        answer, counts = counted(server.post, path, {"model": "adapter", **body})
        assert (answer.status_code, counts) == (200, [count, count]), (path, answer.text)
        assert "tuco" not in answer.text
    answer, counts = counted(server.post, "/v1/tuco/score", {"input": JUDGED})
    assert ([entry["flagged"] for entry in answer.json()["data"]], counts) == (expected, [6, 3])
