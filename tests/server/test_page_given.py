"""A response that is given, on the page at /tuco: its scores, token by token, and the colours' scale."""

import json

from server import fake_api
from server.page_in_browser import TOKENS, Page


def score(here: Page, prompt: str, response: str) -> None:
    """Chooses to score, fills both in, and presses Ctrl+Enter."""
    here.run("document.querySelector('[value=score]').click()")
    here.run(f"document.getElementById('response').value = {json.dumps(response)}")
    here.ask(prompt)


def test_a_given_response_shows_each_tokens_scores(page):
    here = page().ready()
    text = "Mix 500 g flour 😊 and\n\nwater."
    score(here, "How do I bake bread?", text)
    assert here.status("Done") == "Done."
    names = fake_api.split(text)
    assert here.texts() == [text]
    labels = here.run(f"{TOKENS}[0].map((t) => t.ariaLabel)")
    for place, label in enumerate(labels):
        signed = f"{fake_api.delta(place):+.2f}".replace("-", "−")
        assert f"TuCo {fake_api.score(1, place):.3f} · Δ log p {signed}" in label
    assert len(labels) == len(names)
    assert f"{len(names)} tokens" in here.texts(".foot")[0]
    assert "pre-trained, Δ " in here.texts(".foot")[0]
    betas = enumerate(fake_api.curve(1, 0), start=1)
    assert here.texts("#chart .line-2 title") == [f"α = 1, after layer {n}: {beta:.3f}" for n, beta in betas]
    [sent] = here.app.state.requests
    asked = {"input": "How do I bake bread?", "response": text, "relative_reward": True}
    assert sent == {"model": "base-chat", **asked}


def test_colours_can_have_a_fixed_scale(page):
    here = page().ready()
    select = "document.getElementById('colours')"
    choose = f"((s) => {{ s.value = '%s'; s.dispatchEvent(new Event('change')) }})({select})"
    shown = "['--low', '--high'].map((n) => document.getElementById('results').style.getPropertyValue(n))"
    ends = "['.low', '.high'].map((c) => document.querySelector('#legend ' + c).textContent)"
    here.ask("hello")
    here.status("Done: 4 of 4.")
    assert here.run(shown) != ["0", "1"]
    here.run(choose % "whole")
    assert (here.run(shown), here.run(ends)) == (["0", "1"], ["0.0", "1.0"])
    assert here.run("document.querySelector('[value=delta]').disabled")
    score(here, "hello", "one two three four five")
    here.status("Done.")
    here.run(choose % "delta")
    assert here.run(ends) == ["−5", "5"]
    hue = "getComputedStyle(t.lastChild).backgroundColor.match(/oklab[(][^ ]+ [^ ]+ (-?[0-9.]+)/)[1]"
    warm = here.run(f"{TOKENS}[0].map((t) => [Number(t.style.getPropertyValue('--delta')), Number({hue})])")
    assert min(b for delta, b in warm if delta > 1) > max(b for delta, b in warm if delta < -1)
    here.run("document.querySelector('[value=complete]').click()")
    here.ask("hello")
    here.status("Done: 4 of 4.")
    assert here.run("document.getElementById('colours').value") == "span"


def test_without_a_reward_the_scores_are_there(page):
    here = page().ready()
    score(here, "hello", "an alien word")
    assert here.status("Done") == "Done, without Δ log p: token alien is not the same"
    assert here.texts() == ["an alien word"]
    score(here, "refuse", "a word")
    assert here.status("the prompt") == "the prompt is empty"
