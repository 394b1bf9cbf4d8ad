"""A question as an engine is asked it: the prompt's tokens, and the token that each option begins with."""

import hashlib
from dataclasses import dataclass

from tuco_vllm.prompt_checks import PromptError, check_text
from tuco_vllm.prompts import EncodedPrompt, PromptEncoder, WrittenPrompt
from tuco_vllm.sweep.question import Question


@dataclass(frozen=True, slots=True)
class Asked:
    """Token ids of a question."""

    prompt: list[int]
    options: list[int]
    """The first token of each option, all different."""

    @property
    def digest(self) -> str:
        """What is equal for equal questions, whatever their ids."""
        return hashlib.sha256(repr((self.prompt, sorted(self.options))).encode()).hexdigest()[:16]


def encoded_question(encoder: PromptEncoder, question: Question) -> Asked:
    """The tokens of a question without an error. Raises PromptError, which says what is wrong.

    An option's token is the one behind the prompt's own where prompt and option are tokenised together; where
    those do not begin with the prompt's, the first of the option alone.
    """
    assert question.prompt is not None
    prompt = encoder.encode(question.prompt)
    tokens = [_first_token(encoder, prompt, option) for option in question.options]
    encoder.expect_embedded(tokens)
    for place, token in enumerate(tokens):
        if (other := tokens.index(token)) < place:
            both = f"{question.options[other]!r:.30} and {question.options[place]!r:.30}"
            raise PromptError(f"options {both} begin with the same token ({token}) after this prompt")
    return Asked(prompt.token_ids, tokens)


def _first_token(encoder: PromptEncoder, prompt: EncodedPrompt, option: str) -> int:
    check_text(option, "option")
    own = prompt.token_ids
    both = encoder.tokens(WrittenPrompt(f"{prompt.text}{option}", prompt.templated))
    tokens = both[len(own) :] if both[: len(own)] == own else []
    tokens = tokens or encoder.tokens(WrittenPrompt(option, templated=True))
    if not tokens:
        raise PromptError(f"option {option!r:.30} has no token")
    return tokens[0]
