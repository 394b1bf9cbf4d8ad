"""From a prompt and its response to token ids: which tokens of a sequence are the response's.

A response is a text or token ids that follow a prompt, or the assistant turn that ends a chat; the prompt is
then what the template gives for the turns before it, with a generation prompt. Its tokens are those of prompt
and response together, behind the prompt's own, if the prompt's are a prefix of those; else those of the
response alone. Of what the template puts behind an assistant's turn the end token counts, white space not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tuco_vllm.prompt_checks import PromptError, check_text, ends_with_assistant, kind_of
from tuco_vllm.prompts import EncodedPrompt, PromptEncoder, WrittenPrompt
from tuco_vllm.records import PromptInput, ResponseInput

_LONGEST_CHARACTER = 4
"""Tokens: of a byte each."""

_LONG_PROMPT = 1 << 20
"""Characters. A prompt that is cut to fit, and longer than this, is not tokenised a second time, with its
response: that one is tokenised alone."""


@dataclass(frozen=True, slots=True)
class EncodedResponse:
    """What follows a prompt."""

    token_ids: list[int]
    text: str | None
    """None where it was given as token ids."""


def encode_with_response(
    encoder: PromptEncoder,
    prompt: PromptInput,
    response: ResponseInput | None,
    *,
    rewarded: bool = False,
    ids: list[int] | None = None,
) -> tuple[EncodedPrompt, EncodedResponse | None]:
    """A prompt and its ``response``, or the assistant turn that ends it; without either, the prompt alone.

    A response is never cut; a prompt is, from the left, where the encoder's ``on_long`` says so. Of
    a text to be ``rewarded`` both models must know the tokens. ``ids`` are all that a prompt alone has, where
    ``encoder.tokens_of`` told them. Raises PromptError, which says what is wrong.
    """
    if ids is not None and response is None:
        return encoder.encode(prompt, ids=ids), None
    encoded, followed = _encode(encoder, prompt, response)
    if rewarded and followed is not None and encoder.shared is not None:
        encoder.shared.expect(encoded.token_ids, followed.token_ids)
    return encoded, followed


def text_offsets(tokenizer: Any, token_ids: list[int], text: str | None) -> list[int] | None:
    """Where each token begins in a text, in characters; ``text`` None stands for what the tokens say.

    A token that ends within a character begins where that does. None where tokens do not say the text, as a
    tokenizer may that normalises.
    """
    offsets, prefix, read, length = [], 0, 0, 0
    for place in range(len(token_ids)):
        offsets.append(length)
        known, more = (tokenizer.decode(token_ids[prefix:end]) for end in (read, place + 1))
        # Longer than any character, it is one that was never whole: not waited for.
        whole = not more.endswith("\ufffd") or place + 1 - read >= _LONGEST_CHARACTER
        if len(more) > len(known) and whole:
            length += len(more) - len(known)
            prefix, read = read, place + 1
    if text is None:
        return offsets
    said = tokenizer.decode(token_ids)  # of a first token the white space before it may be missing
    if not text.endswith(said) or text[: len(text) - len(said)].strip():
        return None
    return [offset and offset + len(text) - len(said) for offset in offsets]


def _encode(
    encoder: PromptEncoder, prompt: PromptInput, response: ResponseInput | None
) -> tuple[EncodedPrompt, EncodedResponse | None]:
    turns, answer = _last_turn(prompt)
    if answer is not None and response is not None:
        raise PromptError("the chat ends with an assistant turn, and there is a response as well")
    if answer is not None:
        response = _turn_text(encoder, turns, answer)
    if response is None:
        return encoder.encode(turns), None
    encoder.encode(turns)  # what is refused alone need not be tokenised with its response
    written = encoder.written(turns)
    followed = _response(encoder, written, response)
    limit, count = encoder.max_model_len, len(followed.token_ids)
    if limit is not None and count > limit:  # its last token is written, not read
        raise PromptError(f"response has {count} tokens, the limit is {limit} with a token of a prompt")
    encoded = encoder.encode(turns, reserved=count - 1)
    if encoder.on_long == "truncate-right" and len(encoded.token_ids) + count - 1 == limit:
        whole = turns if written is None else encoder.tokens(written)
        if len(whole) > len(encoded.token_ids):
            raise PromptError("prompt and response are too long: such a prompt is cut from the left only")
    return encoded, followed


def _last_turn(prompt: PromptInput) -> tuple[PromptInput, dict[str, Any] | None]:
    """The prompt without the assistant turn that ends it, and that turn."""
    turns: Any = prompt
    if not ends_with_assistant(turns):
        return turns, None
    if ends_with_assistant(turns[:-1]):
        raise PromptError("the chat ends with two assistant turns: which is the response?")
    if len(turns) == 1:
        raise PromptError("the chat is an assistant turn alone: a response needs a prompt")
    return turns[:-1], turns[-1]


def _turn_text(encoder: PromptEncoder, turns: Any, answer: dict[str, Any]) -> str:
    """What the template writes of the last turn, behind the generation prompt."""
    content = answer.get("content")
    if content == "":
        raise PromptError("the response is empty: the last turn has no text")
    before, whole = encoder.rendered(turns), encoder.rendered([*turns, answer], generation_prompt=False)
    if not whole.startswith(before):
        raise PromptError(
            "what the chat template gives for the prompt does not begin what it gives for prompt and "
            "response: give the response apart, or another template"
        )
    text = whole[len(before) :]
    end = text.rfind(content) + len(content) if isinstance(content, str) and content in text else 0
    return text[:end] + text[end:].rstrip()


def _response(
    encoder: PromptEncoder, prompt: WrittenPrompt | None, response: ResponseInput
) -> EncodedResponse:
    if isinstance(response, list):
        if not response:
            raise PromptError("the response is empty: it has no tokens")
        return EncodedResponse(encoder.checked_ids(response, "response"), None)
    if not isinstance(response, str):
        raise PromptError(f"the response is {kind_of(response)}, not a string or token ids")
    check_text(response, "response")
    token_ids = _behind(encoder, prompt, response)
    if token_ids is None:
        token_ids = encoder.tokens(WrittenPrompt(response, templated=True))
    if not token_ids:
        raise PromptError("the response is empty: it has no tokens")
    encoder.expect_embedded(token_ids)
    return EncodedResponse(token_ids, response)


def _behind(encoder: PromptEncoder, prompt: WrittenPrompt | None, response: str) -> list[int] | None:
    """The response's tokens among those of both, if those begin with the prompt's."""
    if prompt is None or len(prompt.text) > _LONG_PROMPT:
        return None
    alone = encoder.tokens(prompt)
    both = encoder.tokens(replace(prompt, text=prompt.text + response))
    return both[len(alone) :] if both[: len(alone)] == alone else None
