"""From a prompt to token ids: the one place, so that one input has one score in Python, CLI and HTTP.

A string is tokenised raw, with the tokenizer's own special tokens. A chat goes through FT's chat template
with a generation prompt, and its text is tokenised without further special tokens (the template has written
them). Token ids are taken as they are. A text that cannot fit is refused before it is tokenised.
"""

from __future__ import annotations  # transformers' types below are for the checker only

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuco_vllm.errors import InputError
from tuco_vllm.long_texts import LongTexts
from tuco_vllm.prompt_checks import PromptError, check_text, kind_of, texts_of_parts
from tuco_vllm.records import Messages, PromptInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tuco_vllm.shared_tokens import SharedTokens

ON_LONG = ("error", "truncate-left", "truncate-right")


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """What the engine is given, and the text it was made from."""

    token_ids: list[int]
    text: str | None
    """The text that was tokenised (before truncation): a raw string, or a template's output; None for ids."""
    templated: bool
    """Whether a chat template made the text."""


@dataclass(frozen=True, slots=True)
class WrittenPrompt:
    """A prompt as the text that is tokenised."""

    text: str
    templated: bool
    """Whether a chat template made it; else the tokenizer adds its special tokens."""


def load_tokenizer(directory: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """A model directory's tokenizer, without its weights. Raises InputError where there is none."""
    # Takes seconds, with torch behind it; most of a job's processes load no tokenizer.
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(directory), trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises every kind here, ImportError and KeyError included
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"cannot load a tokenizer from {directory}: {reason}") from error


class PromptEncoder:
    """Encodes prompts for one FT model.

    Args:
        tokenizer: FT's.
        vocab_size: how many tokens FT embeds, where it is known: its tokenizer may have more.
        chat_template: "auto" (the tokenizer's template for chats, none for strings), "none" (chats are
            refused), or a Jinja file, which serves chats and wraps every string as one user turn; or what
            stands in such a file (``template_in``).
        template_variables: more names that the template may use.
        system_prompt: wraps every string as one user turn after this system turn, and opens every chat that
            has no system turn of its own.
        on_long: what becomes of a prompt over the limit. "truncate-left" drops tokens from its start and
            "truncate-right" from its end, inside the special tokens that the tokenizer puts around a string;
            of chats and token ids a leading BOS is kept. truncate-right cuts a chat's generation prompt too,
            so for chats truncate-left is the one to take.
        max_model_len: the limit in tokens; None sets none (before an engine has said what it holds).
        mend: what to do about a prompt over the limit, in the words of whoever asks.

    ``shared``, if set, is what PT's tokenizer has in common with FT's (for ``encode_with_response``).

    Raises InputError for a template that is missing, unreadable or not Jinja.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        vocab_size: int | None = None,
        chat_template: str = "auto",
        template_variables: Mapping[str, Any] | None = None,
        system_prompt: str | None = None,
        on_long: str = "error",
        max_model_len: int | None = None,
        mend: str = "shorten it, let on-long truncate it, or raise max-model-len",
    ) -> None:
        if on_long not in ON_LONG:
            raise InputError(f"on-long is {on_long!r}: choose one of {', '.join(ON_LONG)}")
        self.tokenizer = tokenizer
        self.system_prompt = system_prompt
        self.on_long = on_long
        self.max_model_len = max_model_len
        self.shared: SharedTokens | None = None
        self.mend = mend
        self._template = _template_text(tokenizer, chat_template)
        self._variables = dict(template_variables or {})
        self._wraps_strings = chat_template not in ("auto", "none") or system_prompt is not None
        if self._wraps_strings and self._template is None:
            raise InputError("a system prompt needs a chat template, and there is none: name a template file")
        if self._template is not None:
            self._check_syntax()
        self._takes_parts = self._template is not None and self._renders_parts()
        self._vocabulary = vocab_size or len(tokenizer)
        self._texts = LongTexts(tokenizer)

    @property
    def template_sha256(self) -> str | None:
        """SHA-256 (hex) of the template that chats go through; None where there is none."""
        return hashlib.sha256(self._template.encode()).hexdigest() if self._template is not None else None

    def encode(
        self, prompt: PromptInput, *, reserved: int = 0, ids: list[int] | None = None
    ) -> EncodedPrompt:
        """Token ids within the limit, less ``reserved`` for what follows. Raises PromptError, whose text says
        what is wrong with this prompt. ``ids`` are all that its text has, where ``tokens_of`` told them."""
        written = self.written(prompt)
        limit = None if self.max_model_len is None else self.max_model_len - reserved
        if written is None:
            return EncodedPrompt(self._fit(self.checked_ids(prompt), limit), None, templated=False)
        ids = self._tokenised(written, limit) if ids is None else ids
        affixes = (None, 0) if written.templated else self._texts.affixes
        return EncodedPrompt(self._fit(ids, limit, *affixes), written.text, written.templated)

    def tokens_of(self, texts: Iterable[str]) -> dict[str, list[int]]:
        """All token ids of short strings that nothing else is done to, in less time than one by one."""
        return {} if self._wraps_strings else self._texts.tokens_of(texts, self.max_model_len)

    def written(self, prompt: PromptInput) -> WrittenPrompt | None:
        """The text of a prompt; None of token ids, which are not looked at yet. Raises PromptError."""
        if isinstance(prompt, str):
            check_text(prompt)
            if not self._wraps_strings:
                return WrittenPrompt(prompt, templated=False)
            return WrittenPrompt(self.rendered([{"role": "user", "content": prompt}]), templated=True)
        if not isinstance(prompt, list):
            raise PromptError(f"the prompt is {kind_of(prompt)}, not a string, token ids or chat messages")
        if not prompt:
            raise PromptError("the prompt is empty")
        if all(isinstance(item, dict) for item in prompt):
            return WrittenPrompt(self.rendered(prompt), templated=True)
        return None

    def rendered(self, messages: Sequence[Any], *, generation_prompt: bool = True) -> str:
        """A chat as the template writes it. Raises PromptError."""
        chat = [self._checked_message(place, message) for place, message in enumerate(messages)]
        if self._template is None:
            raise PromptError("there is no chat template for messages: the tokenizer has none, or it is off")
        if self.system_prompt is not None and chat[0]["role"] != "system":
            chat = [{"role": "system", "content": self.system_prompt}, *chat]
        try:
            text = self._render(chat, generation_prompt)
        except Exception as error:  # a template is a program: it may raise anything
            raise PromptError(f"the chat template failed: {error}") from error
        check_text(text)
        return text

    def tokens(self, written: WrittenPrompt) -> list[int]:
        """All its token ids, however many."""
        return self.tokenizer.encode(written.text, add_special_tokens=not written.templated)

    def _render(self, chat: Messages, generation_prompt: bool = True) -> str:
        return self.tokenizer.apply_chat_template(
            chat,
            chat_template=self._template,
            **{**self._variables, "tokenize": False, "add_generation_prompt": generation_prompt},
        )

    def _check_syntax(self) -> None:
        from jinja2 import TemplateSyntaxError

        try:
            self._render([{"role": "user", "content": "a"}])
        except TemplateSyntaxError as error:
            raise InputError(f"the chat template is not valid Jinja: {error}") from error
        except Exception:  # it compiles; whether it takes a given chat is a question for that chat
            pass

    def _renders_parts(self) -> bool:
        """Whether the template takes a content that is a list of parts, as vLLM tells it for its chats."""
        texts = ("first-part", "second-part")
        try:
            text = self._render([{"role": "user", "content": [{"type": "text", "text": t} for t in texts]}])
        except Exception:  # a template is a program
            return False
        return all(t in text for t in texts) and str([texts[0]])[1:-1] not in text  # a list's own spelling

    def _checked_message(self, place: int, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message as the template takes it: without null fields, and its texts in one or in parts.

        Parquet gives every message all fields that any message has.
        """
        fields = {key: value for key, value in message.items() if value is not None}
        if not isinstance(fields.get("role"), str):
            raise PromptError(f"message {place} has no role (a string like 'user')")
        content = fields.get("content")
        if content is None and "tool_calls" in fields:
            return fields
        texts = [content] if isinstance(content, str) else texts_of_parts(place, content)
        parts = [{"type": "text", "text": text} for text in texts]
        return fields | {"content": parts if self._takes_parts else "\n".join(texts)}

    def _tokenised(self, written: WrittenPrompt, limit: int | None) -> list[int]:
        """Its ids; of a text over the limit, as many as ``_fit`` needs of the end that it keeps."""
        text = written.text
        if limit is None or len(text) <= limit:
            return self.tokens(written)
        longest = self._texts.longest_token if self.on_long == "error" else None
        if longest is not None and len(text) > limit * longest:
            raise PromptError(
                f"prompt has {len(text)} characters, more than the {limit} tokens of the limit can hold "
                f"(at most {longest} each): {self.mend}"
            )
        end = self._texts.tail if self.on_long == "truncate-left" else self._texts.head
        ids = end(text, limit, special=not written.templated)
        if self.on_long == "error" and len(ids) > limit and len(text) > self._texts.tried(limit):
            raise PromptError(f"prompt has more than {limit} tokens, which is the limit: {self.mend}")
        return ids

    def checked_ids(self, ids: Sequence[Any], whose: str = "prompt") -> list[int]:
        """``ids`` as FT embeds them. Raises PromptError."""
        for token in ids:
            if not isinstance(token, int):
                raise PromptError(
                    f"the {whose}'s list holds {kind_of(token)}: neither token ids nor messages"
                )
            if not 0 <= token < self._vocabulary:
                raise PromptError(f"token id {token} is not in FT's vocabulary of {self._vocabulary}")
        return list(map(int, ids))  # true is 1, as it is to vLLM

    def expect_embedded(self, ids: list[int]) -> None:
        """A tokenizer may have more tokens than its model: PromptError names the one."""
        if (token := max(ids)) >= self._vocabulary:
            text = self.tokenizer.convert_ids_to_tokens(token)
            raise PromptError(f"token {text} ({token}) is not among the {self._vocabulary} that FT embeds")

    def _fit(
        self, ids: list[int], limit: int | None, prefix: int | None = None, suffix: int = 0
    ) -> list[int]:
        """``ids`` within the limit; the first ``prefix`` and last ``suffix`` tokens are not cut away."""
        if not ids:
            raise PromptError("the prompt is empty: it has no tokens")
        self.expect_embedded(ids)
        if limit is None or len(ids) <= limit:
            return ids
        if self.on_long == "error":
            taken = self.max_model_len - limit if self.max_model_len else 0
            less = f" less {taken} for its response" if taken else ""
            raise PromptError(
                f"prompt has {len(ids)} tokens, the limit is {limit + taken}{less}: {self.mend}"
            )
        if self.on_long == "truncate-left":
            kept = prefix if prefix is not None else int(ids[0] == self.tokenizer.bos_token_id)
            kept = min(kept, limit)
            return ids[:kept] + ids[len(ids) - (limit - kept) :]
        kept = min(suffix, limit)
        return ids[: limit - kept] + ids[len(ids) - kept :]


def _template_text(tokenizer: PreTrainedTokenizerBase, choice: str) -> str | None:
    if choice == "none":
        return None
    if choice == "auto":
        try:
            return tokenizer.get_chat_template()
        except ValueError:  # the tokenizer has none, or several and no default
            return None
    return template_in(choice)


def template_in(choice: str) -> str:
    """The Jinja text of a chat template's file; ``choice`` itself where it names no file but is such a text.

    Told apart as vLLM does. Raises InputError where the file cannot be read.
    """
    try:
        return Path(choice).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and any(letter in choice for letter in "{}\n"):
            return choice
        raise InputError(f"cannot read chat template {choice}: {error} (or say auto or none)") from error
