"""What is wrong with a prompt, in words for who wrote it."""

from tuco_vllm.errors import InputError


class PromptError(InputError):
    """This prompt cannot be scored; in a corpus it costs its own row only."""


def kind_of(value: object) -> str:
    """A value's kind in the words of JSON, for messages to people."""
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number"}
    names |= {str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def check_text(text: str, whose: str = "prompt") -> None:
    """PromptError for what no tokenizer takes."""
    if not text:
        raise PromptError(f"the {whose} is empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = f"\\u{ord(text[error.start]):04x}"
        raise PromptError(f"the {whose} holds a lone surrogate ({code}) at position {error.start}") from error


def texts_of_parts(place: int, content: object) -> list[str]:
    """The texts of a content that is a list of text parts; PromptError for any other content."""
    if not isinstance(content, list):
        raise PromptError(f"message {place}'s content is {kind_of(content)}, not a string or a list of texts")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part
        if not isinstance(text, str):
            raise PromptError(f"message {place}'s content has a part that is no text: only texts are scored")
        texts.append(text)
    return texts


def ends_with_assistant(prompt: object) -> bool:
    """Whether a prompt is a chat that ends with an assistant turn."""
    last = prompt[-1] if isinstance(prompt, list) and prompt else None
    return isinstance(last, dict) and last.get("role") == "assistant"
