"""Templates around requests, requests in several languages, and what an attack has to be compared with.

An attack changes a prompt's length, its template and its suffix, and each of these moves TuCo by itself. So
beside attacked prompts stand controls that share one of them and attack nothing:

    control:template   a harmless request in the attack's template (``in_templates``)
    control:length     a harmless prompt of about as many tokens (``of_equal_length``)
    control:suffix     the bare request with a random suffix of as many tokens (``with_random_suffix``)
"""

import random
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tuco_vllm.builders.rows import Row, asked
from tuco_vllm.errors import InputError

SLOT = "[INSERT PROMPT HERE]"


def in_templates(
    prompts: Sequence[tuple[str, str]],
    templates: Sequence[tuple[str, str]],
    *,
    slot: str = SLOT,
    group: str = "attack:template",
    raw: bool = False,
) -> Iterator[Row]:
    """Each (id, prompt) in each (name, template), in place of ``slot``. InputError for one without a slot."""
    for name, template in templates:
        if slot not in template:
            raise InputError(f"template {name!r:.60} has no {slot}: name its slot, or leave it out")
        for own, prompt in prompts:
            text = asked(template.replace(slot, prompt), raw=raw)
            yield {"id": f"{own}:{name}", **text, "group": group, "template": name, "behaviour": own}


def in_languages(
    rows: Sequence[Row], groups: Mapping[str, str], *, raw: bool = False
) -> tuple[list[Row], int]:
    """Prompts that are there in all of ``groups``' languages (language -> group), and how many are not.

    Rows have ``id``, ``lang`` and ``prompt``; the same id means the same question.
    """
    by_id: dict[str, dict[str, str]] = {}
    for row in rows:
        texts = by_id.setdefault(row["id"], {})
        if row["lang"] in groups and texts.setdefault(row["lang"], row["prompt"]) != row["prompt"]:
            raise InputError(f"{row['id']!r:.60} is there twice in {row['lang']!r:.20}, in other words")
    whole = {name: texts for name, texts in by_id.items() if texts.keys() == groups.keys()}
    built = [
        {
            "id": f"{name}:{lang}",
            **asked(texts[lang], raw=raw),
            "group": group,
            "lang": lang,
            "behaviour": name,
        }
        for name, texts in whole.items()
        for lang, group in groups.items()
    ]
    return built, len(by_id) - len(whole)


def of_equal_length(
    attacked: Sequence[tuple[str, str]], pool: Sequence[tuple[str, str]], tokenizer: Any, *, raw: bool = False
) -> Iterator[Row]:
    """For each attacked (id, prompt) another of the pool, each once: the shortest that is as long, cut at a
    token's end to as many. InputError where the pool is the smaller, or has none that is as long.
    """
    if len(pool) < len(attacked):
        raise InputError(f"{len(attacked)} prompts need as many others, and there are {len(pool)}: give more")
    sizes = sorted((len(tokenizer(text)["input_ids"]), place) for place, (_, text) in enumerate(pool))
    # The longest first: it has the fewest to choose from.
    for size, (name, _) in sorted(
        ((len(tokenizer(text)["input_ids"]), (name, text)) for name, text in attacked), reverse=True
    ):
        if not sizes or sizes[-1][0] < size:
            raise InputError(
                f"{name!r:.60} has {size} tokens, and no prompt left in the pool has as many: give more "
                "and longer ones (tuco build windows makes some)"
            )
        count, place = sizes.pop(bisect_left(sizes, (size, -1)))  # the first as long or longer
        own, text = pool[place]
        if count > size:
            text = _cut(text, size, tokenizer)
        yield {
            "id": f"{name}:length",
            **asked(text, raw=raw),
            "group": "control:length",
            "control": own,
            "behaviour": name,
            "tokens_wanted": size,
            "tokens": len(tokenizer(text)["input_ids"]),
        }


def with_random_suffix(
    attacked: Sequence[tuple[str, str, str]], tokenizer: Any, *, seed: int, raw: bool = False
) -> Iterator[Row]:
    """Each (id, bare request, attacked prompt) as the bare request with random words of the vocabulary behind
    it, until it is as long as the attacked prompt."""
    known = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    words = [word for word in known if word.isascii() and word.strip().isalnum() and word.startswith(" ")]
    if not words:
        raise InputError("this tokenizer's vocabulary has no words with a space before them")
    for number, (name, bare, prompt) in enumerate(attacked):
        size, text = len(tokenizer(prompt)["input_ids"]), bare
        draw = random.Random(f"{seed}:{number}")
        while len(tokenizer(text)["input_ids"]) < size:
            text += draw.choice(words)
        yield {
            "id": f"{name}:suffix",
            **asked(text, raw=raw),
            "group": "control:suffix",
            "behaviour": name,
            "tokens_wanted": size,
            "tokens": len(tokenizer(text)["input_ids"]),
        }


def _cut(text: str, size: int, tokenizer: Any) -> str:
    """Its beginning, of ``size`` tokens with the special ones; of about as many where a cut joins some."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    own = size - len(tokenizer("")["input_ids"])
    cuts = [
        text[: offsets[own + more - 1][1]] for more in (0, 1, -1, 2, -2) if 0 < own + more <= len(offsets)
    ]
    return min(cuts, key=lambda cut: abs(len(tokenizer(cut)["input_ids"]) - size))
