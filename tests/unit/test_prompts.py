import hashlib

import pytest
from fake_scorer import TEMPLATE, byte_level_tokenizer

from tuco_vllm.errors import InputError
from tuco_vllm.prompt_checks import PromptError, kind_of
from tuco_vllm.prompts import PromptEncoder, load_tokenizer

TOKENIZER = byte_level_tokenizer()
CHAT = [{"role": "user", "content": "hi"}]
RENDERED = "<|user|>hi\n<|assistant|>"


def encoder(tokenizer=TOKENIZER, **options):
    return PromptEncoder(tokenizer, **({"max_model_len": 50} | options))


def plain(text):
    return TOKENIZER.encode(text, add_special_tokens=False)


def test_a_string_is_raw_with_the_tokenizers_own_special_tokens():
    encoded = encoder().encode("the fox")
    assert encoded.token_ids == [0, *plain("the fox"), 1]
    assert (encoded.text, encoded.templated) == ("the fox", False)


def test_known_tokens_are_of_strings_that_nothing_else_is_done_to():
    texts = ["the fox", "", "x" * 50, "x" * 51, "\ud800", "the fox", "é"]
    expected = {text: TOKENIZER.encode(text) for text in ("the fox", "", "x" * 50, "é")}
    assert encoder().tokens_of(texts) == expected
    assert encoder(system_prompt="be brief").tokens_of(texts) == {}
    assert encoder().tokens_of(["\ud800"]) == encoder().tokens_of([]) == {}
    text = "the fox"
    assert encoder().encode(text, ids=expected[text]) == encoder().encode(text)


def test_a_chat_goes_through_the_template_without_further_special_tokens():
    encoded = encoder().encode(CHAT)
    assert encoded.token_ids == plain(RENDERED)
    assert (encoded.text, encoded.templated) == (RENDERED, True)


def test_token_ids_are_taken_as_they_are():
    encoded = encoder().encode([5, 6, 7])
    assert (encoded.token_ids, encoded.text, encoded.templated) == ([5, 6, 7], None, False)


def test_a_template_file_serves_chats_and_wraps_strings(tmp_path):
    file = tmp_path / "t.jinja"
    file.write_text("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}>")
    wrapping = encoder(chat_template=str(file))
    assert wrapping.encode("hi").text == wrapping.encode(CHAT).text == "[user]hi>"
    assert wrapping.encode("hi").token_ids == plain("[user]hi>")
    assert wrapping.template_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_template_may_be_given_as_its_text(tmp_path):
    text = "{{ messages[0].content }}>"
    file = tmp_path / "{t}"  # a name that has what tells a text
    file.write_text(text)
    by_file, by_text = (encoder(chat_template=given) for given in (str(file), text))
    assert by_text.encode("hi") == by_file.encode("hi")
    assert by_text.template_sha256 == by_file.template_sha256


def test_variables_reach_the_template():
    text = "{{ mode }}{{ add_generation_prompt }}"
    thinking = encoder(chat_template=text, template_variables={"mode": "m", "add_generation_prompt": False})
    assert thinking.encode("hi").text == "mTrue"


def test_tokens_that_ft_does_not_embed_are_refused():
    """A tokenizer may have more tokens than its model: such an id would be read from beyond the embedding."""
    beyond = max(plain("fox"))
    small = encoder(vocab_size=beyond)
    for prompt in ("a fox", [{"role": "user", "content": "fox"}], [beyond]):
        with pytest.raises(PromptError, match=rf"\b{beyond}\b"):
            small.encode(prompt)
    assert encoder(vocab_size=beyond + 1).encode([beyond]).token_ids == [beyond]


def test_tokens_that_only_ft_knows_are_taken():
    """A model may embed more tokens than its tokenizer has; vLLM takes their ids, and true for 1."""
    wide = encoder(vocab_size=10**6)
    assert wide.encode("a fox").token_ids == encoder().encode("a fox").token_ids
    assert wide.encode([10**6 - 1, True]).token_ids == [10**6 - 1, 1]
    with pytest.raises(PromptError, match="token id 1000000 is not in FT's vocabulary of 1000000"):
        wide.encode([10**6])


def test_a_nul_is_a_character():
    assert encoder().encode("a\0b").token_ids == [0, *plain("a\0b"), 1]
    assert "\0" in TOKENIZER.decode(plain("a\0b"))


@pytest.mark.parametrize("part", ["you", {"type": "text", "text": "you"}])
def test_the_texts_of_a_message_are_lines_of_one(part):
    """As vLLM hands them to a template that writes a content as it is."""
    parts = [{"role": "user", "content": [{"type": "text", "text": "hi"}, part]}]
    assert encoder().encode(parts) == encoder().encode([{"role": "user", "content": "hi\nyou"}])


def test_a_template_of_parts_has_them():
    template = "{% for part in messages[0].content %}[{{ part.type }} {{ part.text }}]{% endfor %}"
    of_parts = encoder(byte_level_tokenizer(template=template))
    two = [{"type": "text", "text": "hi"}, {"type": "text", "text": "you"}]
    assert of_parts.encode([{"role": "user", "content": two}]).text == "[text hi][text you]"
    assert of_parts.encode(CHAT).text == "[text hi]"


def test_a_system_prompt_wraps_strings_and_opens_chats_that_have_none():
    system = encoder(system_prompt="be brief")
    assert system.encode("hi").text == "<|system|>be brief\n" + RENDERED
    assert system.encode(CHAT).text == "<|system|>be brief\n" + RENDERED
    own = [{"role": "system", "content": "be long"}, *CHAT]
    assert system.encode(own).text == "<|system|>be long\n" + RENDERED


def test_the_template_is_told_by_its_hash():
    assert encoder().template_sha256 == hashlib.sha256(TEMPLATE.encode()).hexdigest()
    assert encoder(chat_template="none").template_sha256 is None


@pytest.mark.parametrize("tokenizer", [byte_level_tokenizer(template=None), TOKENIZER])
def test_without_a_template_chats_are_refused_and_strings_are_not(tokenizer):
    off = encoder(tokenizer, chat_template="none" if tokenizer.chat_template else "auto")
    assert off.encode("hi").text == "hi"
    with pytest.raises(PromptError, match="no chat template for messages"):
        off.encode(CHAT)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty"),
        ([], "the prompt is empty"),
        (None, "the prompt is null, not a string"),
        (3, "the prompt is a number, not a string"),
        (True, "the prompt is a boolean"),
        ({"role": "user"}, "the prompt is an object"),
        ("a\ud800b", r"a lone surrogate \(\\ud800\) at position 1"),
        ("x" * 100, "prompt has 102 tokens, the limit is 50: "),
        ([5] * 51, "prompt has 51 tokens"),
        ([5, 10**6], f"token id 1000000 is not in FT's vocabulary of {len(TOKENIZER)}"),
        ([5, -1], "token id -1 is not in"),
        ([5, 1.0], "holds a number"),
        (["a"], "holds a string"),
        ([5, {}], "holds an object"),
        ([{"content": "x"}], "message 0 has no role"),
        ([{"role": 3, "content": "x"}], "message 0 has no role"),
        ([*CHAT, {"role": "user"}], "message 1's content is null, not a string"),
        (
            [{"role": "user", "content": 3}],
            "message 0's content is a number, not a string or a list of texts",
        ),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "message 0's content has a part that is no"),
        ([{"role": "user", "content": "\ud800"}], "a lone surrogate"),
    ],
)
def test_a_prompt_that_cannot_be_scored_says_why(prompt, message):
    with pytest.raises(PromptError, match=message):
        encoder().encode(prompt)


def test_a_prompt_as_long_as_the_limit_passes():
    assert len(encoder().encode("x" * 48).token_ids) == 50
    assert len(encoder(max_model_len=None).encode("x" * 1000).token_ids) == 1002


def test_truncation_keeps_the_special_tokens_around_a_string():
    text = "abcdefghij"
    inside = plain(text)
    left = encoder(on_long="truncate-left", max_model_len=5).encode(text)
    right = encoder(on_long="truncate-right", max_model_len=5).encode(text)
    assert left.token_ids == [0, *inside[-3:], 1]
    assert right.token_ids == [0, *inside[:3], 1]
    assert left.text == right.text == text
    bare = byte_level_tokenizer(special=False)
    assert encoder(bare, on_long="truncate-left", max_model_len=5).encode(text).token_ids == inside[-5:]
    assert encoder(bare, on_long="truncate-right", max_model_len=5).encode(text).token_ids == inside[:5]


def test_truncation_of_chats_and_ids_keeps_a_leading_bos():
    assert encoder(on_long="truncate-left", max_model_len=3).encode([0, 5, 6, 7, 8]).token_ids == [0, 7, 8]
    assert encoder(on_long="truncate-left", max_model_len=3).encode([4, 5, 6, 7, 8]).token_ids == [6, 7, 8]
    assert encoder(on_long="truncate-right", max_model_len=3).encode([0, 5, 6, 7]).token_ids == [0, 5, 6]
    chat = encoder(on_long="truncate-left", max_model_len=4).encode(CHAT)
    assert chat.token_ids == plain(RENDERED)[-4:]


@pytest.mark.parametrize("on_long", ["truncate-left", "truncate-right"])
@pytest.mark.parametrize("limit", [1, 2])
def test_a_limit_smaller_than_the_special_tokens_is_still_a_limit(on_long, limit):
    assert len(encoder(on_long=on_long, max_model_len=limit).encode("abc").token_ids) == limit


def test_a_template_that_fails_costs_its_prompt(tmp_path):
    file = tmp_path / "t.jinja"
    file.write_text("{% if messages|length > 1 %}{{ raise_exception('one turn only') }}{% endif %}ok")
    one_turn = encoder(chat_template=str(file))
    assert one_turn.encode(CHAT).text == "ok"
    with pytest.raises(PromptError, match="the chat template failed: one turn only"):
        one_turn.encode(CHAT * 2)


def test_null_fields_of_messages_are_not_fields():
    template = "{% for m in messages %}{{ m.keys()|list|join(',') }}{% endfor %}"
    tokenizer = byte_level_tokenizer(template=template)
    message = {"role": "user", "content": "x", "name": None}
    assert encoder(tokenizer).encode([message]).text == "role,content"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chat_template": "missing.jinja"}, "cannot read chat template missing.jinja"),
        ({"chat_template": "none", "system_prompt": "x"}, "a system prompt needs a chat template"),
        ({"on_long": "drop"}, "choose one of error, truncate-left, truncate-right"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(options, message):
    with pytest.raises(InputError, match=message):
        encoder(**options)


def test_a_template_that_is_not_jinja_is_refused_at_once(tmp_path):
    (tmp_path / "t.jinja").write_text("{% if %}")
    with pytest.raises(InputError, match="not valid Jinja"):
        encoder(chat_template=str(tmp_path / "t.jinja"))


def test_a_tokenizer_comes_from_a_model_directory(tmp_path):
    TOKENIZER.save_pretrained(tmp_path / "model")
    assert encoder(load_tokenizer(tmp_path / "model")).encode(CHAT).text == RENDERED
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"cannot load a tokenizer from .*empty"):
        load_tokenizer(tmp_path / "empty")


def test_kinds_are_named_in_the_words_of_json():
    kinds = [kind_of(value) for value in (None, True, 1, 1.5, "", [], {}, b"")]
    assert kinds == [
        *("null", "a boolean", "a number", "a number", "a string", "a list", "an object", "a bytes")
    ]
