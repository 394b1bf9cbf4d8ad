"""How long a text is, and its first or last tokens, without tokenising more of it than that takes.

A tokenizer's work goes into pieces: nothing that stands before a piece changes the tokens of those after it.
Where a piece ends for certain is between a sign of ASCII and a space, if no token reaches across one: the
pre-tokenizers of byte-level BPE split there, and where there is none, as in SentencePiece's models, what is
looked up in the vocabulary is all there is. A text is cut at such a place only, and one that has none (a
single word, or Chinese without a space) is tokenised whole, as is every text where a token does reach across.
"""

from __future__ import annotations  # transformers' types below are for the checker only

import re
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SEAM = re.compile(r"[!-~](?= )")
_TOKEN_ACROSS_A_SEAM = re.compile(r"[!-~][ ▁Ġ]")  # the space, as SentencePiece and byte-level BPE write it
_SURROGATE = re.compile("[\ud800-\udfff]")
_CHARACTERS_A_TOKEN = 8
"""Twice what is common: at first so much text is tried for so many tokens."""


class LongTexts:
    """The texts of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def longest_token(self) -> int | None:
        """The most characters that become one token, or None where that cannot be told.

        It is the longest name in the vocabulary, as in vLLM (``max_chars_per_token``). But a tokenizer has no
        such bound if it takes any number of characters for one token, or for none: if it drops or collapses
        white space or control characters, makes one unknown token of a run or of a long word, or has a
        special token that takes the white space beside it. (Composing accents shortens a text too, but
        nowhere near to the longest name, which is a run of spaces or signs.)
        """
        tokenizer = self._tokenizer
        longest = max(map(len, self._names))
        special = tokenizer.added_tokens_decoder.values()
        probes = (letter * (4 * longest) for letter in " \n\ta\x01\u200b\ue000\u0301")
        if any(token.lstrip or token.rstrip for token in special):
            return None
        if any(len(tokenizer.encode(probe, add_special_tokens=False)) < 4 for probe in probes):
            return None
        return longest

    @staticmethod
    def tried(limit: int) -> int:
        """How many characters are tokenised at first: of shorter texts all tokens are given."""
        return _CHARACTERS_A_TOKEN * limit

    def tokens_of(self, texts: Iterable[str], limit: int | None) -> dict[str, list[int]]:
        """All tokens, special ones included, of the texts that have up to ``limit`` characters, by text.

        A fast tokenizer takes them in one call. Left out is what no tokenizer takes, for one such text would
        fail them all. Nothing comes back of a tokenizer that does something of its own to a text.
        """
        short = [text for text in dict.fromkeys(texts) if limit is None or len(text) <= limit]
        short = [text for text in short if text.isascii() or not _SURROGATE.search(text)]
        if not short or not self._tokenizer.is_fast:
            return {}
        first = self._tokenizer.encode(short[0])  # after which it neither cuts nor pads
        made = [each.ids for each in self._tokenizer.backend_tokenizer.encode_batch_fast(short)]
        return dict(zip(short, made, strict=True)) if made[0] == first else {}

    def head(self, text: str, limit: int, *, special: bool) -> list[int]:
        """All tokens of ``text``, or more than ``limit`` of the first; ``special``: special ones included."""
        size = self.tried(limit)
        while size < len(text) and (cut := self._seam(text, size)):
            ids = self._tokenizer.encode(text[:cut], add_special_tokens=special)
            if len(ids) > limit:
                return ids
            size = 2 * cut
        return self._tokenizer.encode(text, add_special_tokens=special)

    def tail(self, text: str, limit: int, *, special: bool) -> list[int]:
        """All tokens of ``text``, or more than ``limit`` of the last behind how they open.

        They open with the special ones, or with the first where there are none.
        """
        before = self.affixes[0] if special else 0
        size = self.tried(limit)
        while size < len(text):
            start = len(text) - size
            size *= 2
            if (cut := self._seam(text, start)) is None:
                continue
            # What a text begins with may get other tokens than within a text: a first piece is left out.
            first = len(self._tokenizer.encode(text[start:cut], add_special_tokens=False))
            last = self._tokenizer.encode(text[start:], add_special_tokens=special)[before + first :]
            if len(last) > limit:
                opening = before if special else 1
                return self.head(text, opening, special=special)[:opening] + last
        return self._tokenizer.encode(text, add_special_tokens=special)

    @cached_property
    def affixes(self) -> tuple[int, int]:
        """How many special tokens the tokenizer puts before and after a text."""
        bare, full = (self._tokenizer.encode("a", add_special_tokens=special) for special in (False, True))
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return start, len(full) - start - len(bare)
        return 0, 0

    @cached_property
    def _names(self) -> list[str]:
        return list(self._tokenizer.get_vocab())

    @cached_property
    def _has_seams(self) -> bool:
        added = self._tokenizer.get_added_vocab()  # looked for in the text itself
        across = (_SEAM if name in added else _TOKEN_ACROSS_A_SEAM for name in self._names)
        return not any(seam.search(name) for seam, name in zip(across, self._names, strict=True))

    def _seam(self, text: str, start: int) -> int | None:
        """The first place at or after ``start`` where a text may be cut."""
        found = _SEAM.search(text, start) if self._has_seams else None
        return found.end() if found else None
