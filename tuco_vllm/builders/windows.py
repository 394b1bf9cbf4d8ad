"""Windows of plain text, all of one number of tokens: the paper's §5.2 takes 97 of OpenWebText.

A window is cut from the text where tokens end, and kept only if it is so many tokens *as it will be scored*:
raw, with the tokenizer's special tokens. Text that is decoded from tokens would not always come back as them.
"""

import random
from collections.abc import Iterable, Iterator
from typing import Any

from tuco_vllm.builders.rows import Row
from tuco_vllm.errors import InputError

_TRIES = 8
"""Places that are tried for a window, each a token further: a cut may join what the text had apart."""


def windows(
    documents: Iterable[tuple[str, str]], tokenizer: Any, tokens: int, *, count: int | None, seed: int
) -> Iterator[Row]:
    """Up to ``count`` windows, spread over the documents: one of each, in random order, then further ones.

    Windows of a document do not overlap. Raises InputError for a tokenizer that cannot say where its tokens
    lie in a text, and where ``tokens`` are no more than its special tokens.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InputError("this tokenizer does not say where tokens lie in a text: windows need a fast one")
    own = tokens - len(tokenizer("")["input_ids"])
    if own < 1:
        raise InputError(f"windows of {tokens} tokens are all special tokens: take more")
    draw = random.Random(seed)
    left = list(documents)
    draw.shuffle(left)
    found, states = 0, [_windows_of(text, tokenizer, tokens, own, draw) for _, text in left]
    places = [(name, state, iter(range(1 << 62))) for (name, _), state in zip(left, states, strict=True)]
    while places and (count is None or found < count):
        going_on = []
        for name, state, number in places:
            if count is not None and found == count:
                return
            if (text := next(state, None)) is not None:
                found += 1
                going_on.append((name, state, number))
                yield {"id": f"{name}:{next(number)}", "prompt": text, "group": "text", "tokens": tokens}
        places = going_on


def _windows_of(text: str, tokenizer: Any, tokens: int, own: int, draw: random.Random) -> Iterator[str]:
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    start = draw.randrange(max(1, min(own, len(offsets) - own + 1)))
    while start + own <= len(offsets):
        for begin in range(start, min(start + _TRIES, len(offsets) - own + 1)):
            window = text[offsets[begin][0] : offsets[begin + own - 1][1]]
            if window.strip() and len(tokenizer(window)["input_ids"]) == tokens:
                yield window
                start = begin
                break
        start += own
