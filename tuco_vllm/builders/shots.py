"""Prompts behind turns that set an example: many-shot jailbreaks (§5.3), and refusals (§5.5).

For each prompt there is a row for each number of shots k, and the shots of k are the first of those of a
larger k, so that rows of one prompt differ in nothing but how many there are. ``shots`` has k.
"""

import random
from collections.abc import Iterator, Sequence

from tuco_vllm.builders.rows import Row
from tuco_vllm.errors import InputError

POWERS = (1, 2, 4, 8, 16, 32, 64, 128)
"""The paper's numbers of shots."""

REFUSAL = "I'm sorry, but I can't help with that."


def with_shots(
    prompts: Sequence[tuple[str, str]],
    examples: Sequence[tuple[str, str]],
    counts: Sequence[int],
    *,
    seed: int,
    as_text: bool = False,
    group: str = "many-shot",
) -> Iterator[Row]:
    """Each (id, prompt) behind k (question, answer) examples, drawn for it, never the prompt itself.

    As turns of a chat or, ``as_text``, as one user turn that shows a dialogue, which is what many-shot
    attacks send (Anil et al. 2024). Raises InputError where there are fewer examples than shots.
    """
    most = max(counts)
    for number, (name, prompt) in enumerate(prompts):
        others = [each for each in examples if each[0] != prompt]
        if len(others) < most:
            raise InputError(f"{len(others)} examples for {name!r:.60}, and {most} are asked for: give more")
        shown = random.Random(f"{seed}:{number}").sample(others, most)
        for count in counts:
            turns = [
                {"role": role, "content": text}
                for question, answer in shown[:count]
                for role, text in (("user", question), ("assistant", answer))
            ]
            turns.append({"role": "user", "content": prompt})
            if as_text:
                turns = [{"role": "user", "content": _dialogue(turns)}]
            yield {
                "id": f"{name}:{count}",
                "messages": turns,
                "group": group,
                "shots": count,
                "behaviour": name,
            }


def _dialogue(turns: Sequence[dict[str, str]]) -> str:
    names = {"user": "User", "assistant": "Assistant"}
    said = [f"{names[turn['role']]}: {turn['content']}" for turn in turns]
    return "\n\n".join([*said, "Assistant:"]) if len(said) > 1 else turns[0]["content"]
