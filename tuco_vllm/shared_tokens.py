"""Tokens that mean the same to both models: only a text of these has a log-probability under each."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from tuco_vllm.config import ModelPair
from tuco_vllm.families import text_of
from tuco_vllm.prompt_checks import PromptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SharedTokens:
    """What PT and FT have in common of their vocabularies.

    A fine-tune often adds tokens for its chats, which its base has never seen. Where PT comes without a
    tokenizer, FT's stands for it, and only the size of PT's embedding is known. PT's is loaded when it is
    first needed: InputError where it cannot be.
    """

    def __init__(
        self, pair: ModelPair, ft_tokenizer: PreTrainedTokenizerBase, *, trust_remote_code: bool = False
    ) -> None:
        self._embedded: int | None = text_of(pair.pt.config).get("vocab_size")
        self._ft: Any = ft_tokenizer
        self._of_pt = partial(_tokenizer_of, pair, trust_remote_code)
        self._pt: Any = None
        self._same: dict[int, bool] = {}

    def expect(self, prompt: list[int], response: list[int]) -> None:
        """PromptError for a token of theirs that PT does not know, or knows as another."""
        if self._pt is None:
            self._pt = self._of_pt() or self._ft
            self._embedded = self._embedded or len(self._pt)
        for token in {*prompt, *response}:
            if token not in self._same:
                self._same[token] = token < (self._embedded or 0) and self._means_the_same(token)
            if not self._same[token]:
                text = self._ft.convert_ids_to_tokens(token)
                name = f"{token}" if text is None else f"{text} ({token})"
                raise PromptError(
                    f"token {name} is not the same to the pre-trained model: there is no relative reward of "
                    "such a text"
                )

    def _means_the_same(self, token: int) -> bool:
        pt, ft = (each.convert_ids_to_tokens(token) for each in (self._pt, self._ft))
        return bool(pt == ft)


def _tokenizer_of(pair: ModelPair, trust_remote_code: bool) -> Any:
    from tuco_vllm.prompts import load_tokenizer

    files = ("tokenizer*", "vocab.*", "*.tiktoken", "tekken.json")
    if not any(path for pattern in files for path in pair.pt.directory.glob(pattern)):
        return None
    return load_tokenizer(pair.pt.directory, trust_remote_code=trust_remote_code)
