"""The page at /tuco in a browser: what a person sees and does. Skipped where there is no Chromium."""

import time

import pytest
from server import fake_api
from server.page_in_browser import TOKENS

ALPHAS = [0, 0.5, 1, 1.5]
EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
def test_a_run_shows_texts_scores_and_curves(page, chat):
    here = page().ready()
    here.ask("How do I bake bread?", chat)
    assert here.status("Done") == "Done: 4 of 4."

    whole = [fake_api.split(fake_api.STORIES[alpha]) for alpha in ALPHAS]
    assert here.texts() == ["".join(names[:48]) for names in whole]
    tuco = "t.style.getPropertyValue('--tuco')"
    tokens = here.run(f"{TOKENS}.map((all) => all.map((t) => [t.textContent, {tuco}, t.ariaLabel]))")
    for alpha, names, shown in zip(ALPHAS, whole, tokens, strict=True):
        assert [text for text, _, _ in shown] == [*names, ""][:48]
        for i, (_, value, label) in enumerate(shown):
            assert float(value) == pytest.approx(fake_api.score(alpha, i))
            assert label.endswith(f"TuCo {fake_api.score(alpha, i):.3f}")
    shade = "getComputedStyle(t.lastChild).backgroundColor.match(/oklab[(]([0-9.]+)/)[1]"
    pairs = here.run(f"{TOKENS}.flat().map((t) => [Number({tuco}), Number({shade})])")
    by_score = [lightness for _, lightness in sorted(pairs)]
    assert by_score == sorted(by_score, reverse=True)  # a higher score is darker
    assert by_score[0] - by_score[-1] > 0.15
    assert here.texts(".score b") == [f"{fake_api.score(alpha, 0):.3f}" for alpha in ALPHAS]
    betas = enumerate(fake_api.curve(1, 0), start=1)
    assert here.texts("#chart .line-2 title") == [f"α = 1, after layer {n}: {beta:.3f}" for n, beta in betas]

    sent = sorted(here.app.state.requests, key=lambda body: body["alpha"])
    assert [body["alpha"] for body in sent] == ALPHAS
    asked = {"messages": [{"role": "user", "content": "How do I bake bread?"}], "logprobs": True}
    asked = asked if chat else {"prompt": "How do I bake bread?", "logprobs": 0}
    settings = {"model": "base-chat", "stream": True, "max_tokens": 48, "temperature": 0, "seed": 0}
    assert sent[0] == {**settings, **asked, "alpha": 0, "tuco": "layers"}


@pytest.mark.parametrize("chat", [False, True], ids=["text", "chat"])
def test_without_token_strings_a_chunk_is_one_token_with_its_last_score(page, chat):
    here = page().ready()
    here.ask("nameless", chat)
    here.status("Done: 4 of 4.")
    names = fake_api.split(fake_api.STORIES[0])[:48]
    assert here.texts()[0] == "".join(names)
    text, label = here.run(f"((t) => [t.textContent, t.ariaLabel])({TOKENS}[0][2])")  # after 1 and 1 come 2
    assert text == names[2] + names[3]
    assert label.endswith(f"TuCo {fake_api.score(0, 3):.3f}")


def test_controls_are_large_enough_to_hit(page):
    here = page().ready()
    controls = "[...document.querySelectorAll('button, input, select, textarea, .toggle span')]"
    seen = "(e) => e.offsetParent && getComputedStyle(e).opacity !== '0'"
    low = "(e) => Math.min(e.offsetHeight, e.offsetWidth) < 24"
    small = f"{controls}.filter({seen}).filter({low}).map((e) => e.outerHTML)"
    here.ask("hello")
    here.status("Done: 4 of 4.")
    assert here.run(small) == []


def test_results_come_into_view_on_a_small_screen(page):
    here = page().ready()
    here.browser.look(360, 640)
    here.ask("hello")
    here.status("Done: 4 of 4.")
    here.browser.wait("document.getElementById('results').getBoundingClientRect().top < 320")


def test_a_line_can_be_brought_before_the_others(page):
    here = page().ready()
    here.ask("hello")
    here.status("Done: 4 of 4.")
    faded = "[...document.querySelectorAll('#chart .line')].map((l) => l.classList.contains('faded'))"
    here.run("document.querySelector('#chart-key li').dispatchEvent(new Event('pointerenter'))")
    assert here.run(faded) == [True, True, True, False]  # drawn last, before the others
    here.run("document.querySelector('#chart-key li').dispatchEvent(new Event('pointerleave'))")
    assert not any(here.run(faded))


def test_a_server_without_scores_still_writes(page):
    here = page().ready()
    here.ask("unscored")
    here.status("Done: 4 of 4.")
    assert here.texts()[0] == "".join(fake_api.split(fake_api.STORIES[0])[:48])
    assert here.run("document.getElementById('legend').hidden")


def test_scores_that_overflowed_are_not_shown_as_numbers(page):
    here = page().ready()
    here.ask("overflow")
    here.status("Done: 4 of 4.")
    assert here.texts()[0] == "".join(fake_api.split(fake_api.STORIES[0])[:48])
    assert here.texts(".score b") == ["–"] * len(ALPHAS)
    betas = enumerate(fake_api.curve(1, 0)[:3], start=1)
    assert here.texts("#chart .line-2 title") == [f"α = 1, after layer {n}: {beta:.3f}" for n, beta in betas]


def test_markup_from_prompt_and_model_stays_text(page):
    here = page().ready()
    here.ask(f"echo {EVIL}")
    here.status("Done: 4 of 4.")
    assert here.texts() == [EVIL] * 4
    assert here.run("document.querySelectorAll('img, body script').length") == 0
    assert here.run("document.title").startswith("TuCo")


def test_the_policy_refuses_markup_that_a_script_writes(page):
    here = page().ready()
    assert here.run("(() => { try { document.body.innerHTML = '<p>' } catch { return true } })()")
    for _ in range(100):
        if any("TrustedHTML" in line for line in here.complaints()):
            break
        time.sleep(0.05)
    else:
        raise AssertionError("the policy was not what refused it")
    time.sleep(0.3)  # the browser says it in several ways, all of them expected here
    here.complaints()
    here.browser.events.clear()


def test_the_key_is_asked_for_and_sent(page):
    here = page(api_key="secret")
    for key, why in (("wrong", "asks for an API key"), ("secret", "refused this key")):
        here.browser.wait("document.getElementById('key').open")
        here.browser.wait(f"document.getElementById('key-why').textContent.includes('{why}')")
        here.browser.write(key)
        here.press("Enter")
    here.ready().ask("hello")
    assert here.status("Done") == "Done: 4 of 4."
    here.browser.open(f"{here.url}/tuco?again")  # kept in the tab
    here.ready()
    here.run("sessionStorage.clear()")


def test_a_key_that_expires_is_asked_for_once_for_all_completions(page):
    here = page(api_key="secret")
    here.run("sessionStorage.setItem('tuco-api-key', 'secret')")
    here.browser.open(f"{here.url}/tuco?again")
    here.ready()
    here.app.state.api_key = "changed"
    here.ask("hello")
    here.browser.wait("document.getElementById('key').open")
    here.browser.write("changed")
    here.press("Enter")
    here.status("Done: 4 of 4.")
    here.run("sessionStorage.clear()")


def test_without_a_key_the_page_says_so(page):
    here = page(api_key="secret")
    here.browser.wait("document.getElementById('key').open")
    here.press("Escape")
    here.status("This server answers only with its API key.")


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("refuse", "alpha must be a number from 0 to 1, not 1.5"),
        ("break", "The engine died."),
        ("vanish", "The server ended the stream early."),
    ],
)
def test_what_goes_wrong_is_said_in_words(page, prompt, words):
    here = page().ready()
    here.ask(prompt)
    here.status("Done: 0 of 4.")
    errors = here.texts(".error:not([hidden])")
    assert len(errors) == 4
    assert words in errors
    here.ask("and again")  # the page is as good as new
    here.status("Done: 4 of 4.")


def test_stop_ends_the_streams_and_keeps_what_came(page):
    here = page().ready()
    here.ask("slow")
    here.browser.wait(f"{TOKENS}.every((all) => all.length > 0)")
    assert here.app.state.open == 4
    here.run("document.getElementById('stop').click()")
    here.status("Stopped.")
    assert all(here.texts())
    deadline = time.monotonic() + 10
    while here.app.state.open and time.monotonic() < deadline:
        time.sleep(0.05)
    assert here.app.state.open == 0


def test_alphas_can_be_added_moved_and_removed(page):
    here = page().ready()
    values = "[...document.querySelectorAll('#chips input')].map((i) => i.value)"
    here.run("document.getElementById('add').click()")
    assert here.run(values) == ["0", "0.5", "1", "1.5", "0.25"]
    here.run(
        "((s) => { s.value = 1.25; s.dispatchEvent(new Event('input')) })(document.getElementById('slider'))"
    )
    assert here.run(values) == ["0", "0.5", "1", "1.5", "1.25"]
    here.run("document.querySelector('#chips button').click()")
    here.ask("hello")
    here.status("Done: 4 of 4.")
    assert here.texts(".alpha") == [f"α = {alpha}" for alpha in (0.5, 1, 1.25, 1.5)]
    assert here.run("document.getElementById('slider').max") == "2"
    here.run("document.querySelector('#chips input').value = 7")
    here.ask("hello")  # beyond the model's bound: the browser points at the field, nothing is sent
    assert here.run("document.activeElement.value") == "7"
    assert len(here.app.state.requests) == 4


def test_the_keyboard_is_enough(page):
    here = page().ready()
    # A radio button's ring is drawn around its word, a token's around its ink.
    drawn = "(x) => x && getComputedStyle(x).outlineStyle !== 'none'"
    ringed = f"((e) => [e, e.nextElementSibling, e.lastElementChild].some({drawn}))(document.activeElement)"

    def tab_to(condition: str) -> None:
        for _ in range(40):
            here.press("Tab")
            if here.run(f"((e) => {condition})(document.activeElement)"):
                assert here.run(ringed), f"no ring: {condition}"
                return
        raise AssertionError(f"no way to {condition}")

    tab_to("e.name === 'mode'")
    here.press("ArrowRight")
    tab_to("e.id === 'prompt'")
    here.browser.write("Please! ")
    tab_to("e.id === 'run'")
    here.press("Enter")
    here.status("Done: 4 of 4.")
    assert here.app.state.requests[0]["messages"][0]["content"] == "Please! How do I bake bread?"

    tab_to("e.role === 'option' && e.textContent === '\\n'")  # the third column's first token
    here.press("ArrowRight", times=3)
    focused = f"{TOKENS}.map((all) => all.indexOf(document.activeElement))"
    assert here.run(focused) == [-1, -1, 3, -1]
    [tip] = here.texts("#tip:not([hidden])")
    assert tip == f"␣is · TuCo {fake_api.score(1, 3):.3f} · token 4"
    assert here.texts("#chart-of") == ["token 4 of each completion"]
    here.press("ArrowDown")
    assert here.run(focused)[2] > 3
    here.press("ArrowUp")
    assert abs(here.run(focused)[2] - 3) <= 1
    here.press("End")
    assert here.run(focused)[2] == here.run(f"{TOKENS}[2].length") - 1
    tab_to("e.id === 'chart-prompt'")
    here.press("Space")
    assert here.texts("#chart-of") == ["the prompt"]


@pytest.mark.parametrize("width", [1280, 600, 320])
def test_nothing_is_wider_than_the_window(page, width):
    here = page().ready()
    here.browser.look(width, 900)
    here.ask("hello")
    here.status("Done: 4 of 4.")
    assert here.run("document.documentElement.scrollWidth") <= width
