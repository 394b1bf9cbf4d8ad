"""`tuco serve` of a base and adapters: which model a request names is which FT it gets."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import steered
import tiny_models
import tolerances
from server.served import Server
from tiny_adapters import make_adapter
from truth import true_norms, true_output_co, tuco

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
    server = Server((base, one.adapter), root / "log", f"--lora-modules=second={two.adapter}")
    try:
        server.wait()
        yield server, {"adapter": (base, one.merged), "second": (base, two.merged), "ft": (base, base)}
    finally:
        server.stop()


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
