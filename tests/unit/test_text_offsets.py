"""Where tokens lie in a response's text: characters of several tokens, white space that a decoder drops."""

import tiny_models
from transformers import PreTrainedTokenizerFast

from tuco_vllm.responses import text_offsets

BYTES = tiny_models.tokenizer()


def ids(text: str) -> list[int]:
    return BYTES.encode(text, add_special_tokens=False)


def test_every_token_lies_at_its_text():
    text = " the cat sat on the mat"
    tokens = ids(text)
    offsets = text_offsets(BYTES, tokens, text)
    ends = [*offsets[1:], len(text)]
    assert [text[a:b] for a, b in zip(offsets, ends, strict=True)] == [BYTES.decode([t]) for t in tokens]
    assert text_offsets(BYTES, tokens, None) == offsets


def test_tokens_within_a_character_lie_where_it_begins():
    text = "a😀b"
    tokens = ids(text)
    assert len(tokens) == 6  # four bytes between
    assert text_offsets(BYTES, tokens, text) == [0, 1, 1, 1, 1, 2]


def test_half_a_character_at_the_end():
    assert text_offsets(BYTES, ids("a😀")[:3], None) == [0, 1, 1]


def test_what_never_becomes_a_character_costs_no_more_than_others():
    longest = []

    class Counts:
        def decode(self, token_ids):
            longest.append(len(token_ids))
            return BYTES.decode(token_ids)

    [continuation] = {ids("😀")[1]}
    offsets = text_offsets(Counts(), [continuation] * 300, None)
    assert max(longest) < 20
    assert len(offsets) == 300
    assert offsets == sorted(offsets)


class Strips(PreTrainedTokenizerFast):
    """Drops the white space before a first token, as SentencePiece's decoders do."""

    def decode(self, token_ids, **kwargs):
        return super().decode(token_ids, **kwargs).lstrip(" ")


def test_white_space_before_the_first_token():
    text = " the cat"
    strips = Strips(tokenizer_object=BYTES.backend_tokenizer)
    offsets = text_offsets(strips, ids(text), text)
    assert offsets[0] == 0
    assert offsets[1:] == text_offsets(BYTES, ids(text), text)[1:]


def test_tokens_that_do_not_say_the_text():
    assert text_offsets(BYTES, ids("the cat"), "The Cat") is None
