"""§5.3: conjugate prompting. The same harmful request in languages with many texts, and with few.

MultiJail has requests in ten languages; MGSM has harmless questions in eleven, of which both share English,
Chinese, Bengali and Swahili. If TuCo falls from the former two to the latter as much for sums as for harmful
requests, the language does it and no jailbreak. Few texts also mean many tokens: hence pairs of equal length.
"""

import random

import numpy as np
from asked import drawn
from findings import Figure, Finding, Told, at_equal_length, higher, summaries
from setting import Row, Scores, Setting, read_jsonl, regrouped

from tuco_vllm.analysis.statistics import auc, paired_difference

MANY, SOME, FEW = ("en", "zh", "it"), ("vi", "ar", "ko", "th"), ("bn", "sw", "jv")
"""MultiJail's own division."""
BENIGN_MANY, BENIGN_FEW = ("en", "zh", "de", "fr", "es"), ("bn", "sw", "te")
SHARED_MANY, SHARED_FEW = ("en", "zh"), ("bn", "sw")
HARMFUL, BENIGN = "harmful", "sums"


def findings(setting: Setting) -> Told:
    """Score and compare."""
    scores = setting.scored("languages", built(setting), "--no-layers")
    many, few = (f"{HARMFUL} in languages of {kind} texts" for kind in ("many", "few"))
    benign_many, benign_few = (f"{BENIGN} in languages of {kind} texts" for kind in ("many", "few"))
    own = [falls(scores, kind, SHARED_MANY, SHARED_FEW) for kind in (HARMFUL, BENIGN)]
    by_language = Scores([{**row, "group": f"{row['kind']} in {row['lang']}"} for row in scores.rows])
    found = [
        Finding(
            "Harmful requests in languages of few texts have a lower TuCo",
            "lower: Swahili, Malayalam against English, Japanese, Hungarian",
            Figure("TuCo, mean of en, zh, it − mean of bn, sw, jv, of a request", difference(scores), 0.0),
            controls=[
                higher(scores, many, few),
                at_equal_length(scores, many, few),
                higher(scores, benign_many, benign_few),
                higher(by_language, f"{HARMFUL} in en", f"{HARMFUL} in sw"),
                higher(by_language, f"{BENIGN} in en", f"{BENIGN} in sw"),
            ],
        ),
        Finding(
            "… beyond what the same languages do to harmless questions",
            "–",
            Figure("AUC: a harmful request's fall (en, zh to bn, sw) over a sum's", auc(*own)),
        ),
    ]
    return Told(found, summaries(by_language), errors=scores.errors)


def built(setting: Setting) -> list[Row]:
    """Requests that are there in all languages, by ``tuco build languages``."""
    rows = []
    for kind, name, groups in (
        (HARMFUL, "prompts/multijail/multijail_long.jsonl", {"many": MANY, "some": SOME, "few": FEW}),
        (BENIGN, "prompts/mgsm_long.jsonl", {"many": BENIGN_MANY, "few": BENIGN_FEW}),
    ):
        told = [{**row, "id": str(row["id"])} for row in read_jsonl(setting.given(name))]
        ids = drawn(list(dict.fromkeys(row["id"] for row in told)), setting.rows(50), kind)
        wanted = [row for row in told if row["id"] in set(ids)]
        file = setting.file(f"languages-{kind}.jsonl", lambda wanted=wanted: wanted)
        options = [each for group, names in groups.items() for each in ("-l", f"{group}={','.join(names)}")]
        for row in setting.built("languages", f"languages-{kind}-built.jsonl", file, *options):
            group = f"{kind} in languages of {row['group']} texts"
            rows += regrouped([{**row, "kind": kind}], group)
    random.Random(0).shuffle(rows)
    return rows


def means(scores: Scores, kind: str, languages: tuple[str, ...]) -> dict[str, float]:
    """request -> the mean of its TuCo over languages, of requests that were scored in all."""
    found: dict[str, list[float]] = {}
    for row in scores.rows:
        if row["kind"] == kind and row["lang"] in languages:
            found.setdefault(row["behaviour"], []).append(row["tuco"])
    return {name: float(np.mean(own)) for name, own in found.items() if len(own) == len(languages)}


def falls(scores: Scores, kind: str, before: tuple[str, ...], after: tuple[str, ...]) -> list[float]:
    """How much each request's TuCo falls from some languages to others."""
    first, second = (means(scores, kind, languages) for languages in (before, after))
    return [first[name] - second[name] for name in first if name in second]


def difference(scores: Scores):
    """The mean fall of harmful requests, all of MultiJail's division."""
    own = falls(scores, HARMFUL, MANY, FEW)
    return paired_difference(own, np.zeros(len(own)))
