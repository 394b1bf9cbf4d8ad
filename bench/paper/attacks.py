"""§5.3: attacks lower TuCo. GCG's suffixes, the AIM template and GPTFuzzer's templates, each beside controls.

An attack makes a prompt longer and puts other words at its end, and each of these may move TuCo by itself. So
beside GCG stand random suffixes of equal length, and GCG's own suffixes behind harmless requests; beside a
template stand harmless requests in it, and web text of equal length. "Beyond" is what is left: how much more
the attack lowers a harmful request's TuCo than the same change lowers that of what it does not attack.
"""

from collections.abc import Sequence

import numpy as np
from asked import SLOT, aim_template, attacked, drawn, harmless, one_a_goal, templates, web_windows
from findings import Figure, Finding, Told, higher, summaries
from setting import Row, Scores, Setting, chat, regrouped

from tuco_vllm.analysis.statistics import auc, paired_difference

PLAIN, GCG, RANDOM = "harmful", "harmful + GCG", "harmful + random suffix"
HARMLESS, HARMLESS_GCG = "harmless", "harmless + GCG"
LIKE_GCG = "harmless of GCG's length"
AIM, HARMLESS_AIM, LIKE_AIM = "harmful in AIM", "harmless in AIM", "web of AIM's length"
IN_TEMPLATES, HARMLESS_IN_TEMPLATES = "harmful in templates", "harmless in templates"

LONG_TOKENS = 768
"""Of web text that AIM's control is cut from."""


def findings(setting: Setting) -> Told:
    """Score and compare."""
    scores = setting.scored("attacks", [*suffixed(setting), *in_templates(setting)])
    found = [gcg(scores), *beyond_gcg(scores), *aim(scores), *many_templates(scores)]
    return Told(found, summaries(scores), errors=scores.errors)


def suffixed(setting: Setting) -> list[Row]:
    """GCG's rows and their controls."""
    rows = drawn(one_a_goal(attacked(setting)), setting.rows(100), "gcg")
    others = harmless(setting, 2 * setting.rows(100))
    file = setting.file("attacks-gcg.jsonl", lambda: rows)
    pool = setting.file(
        "attacks-pool.jsonl", lambda: [{"id": name, "prompt": text} for name, text in harmless(setting, 999)]
    )
    counted = ("--id-column", "id", "--model", str(setting.ft))
    random = setting.built("suffix-control", "attacks-random.jsonl", file, *counted)
    like = setting.built("length-control", "attacks-like.jsonl", file, *counted, "--pool", str(pool))
    ends = [row["suffix"] for row in rows]
    extended = [(name, text + ends[place % len(ends)]) for place, (name, text) in enumerate(others)]
    return [
        *regrouped(as_chats((row["id"], row["goal"]) for row in rows), PLAIN),
        *regrouped(as_chats((row["id"], row["prompt"]) for row in rows), GCG),
        *regrouped(random, RANDOM),
        *regrouped(as_chats(others), HARMLESS),
        *regrouped(as_chats(extended), HARMLESS_GCG),
        *regrouped(like, LIKE_GCG),
    ]


def in_templates(setting: Setting) -> list[Row]:
    """The templates' rows and their controls; ``template`` says which."""
    goals = [(row["id"], row["goal"]) for row in one_a_goal(attacked(setting))]
    kinds = {
        "harmful": drawn(goals, setting.rows(100), "gcg"),
        "harmless": harmless(setting, 2 * setting.rows(100))[: setting.rows(100)],
    }
    aims = setting.file(
        "aim.jsonl", lambda: [{"id": "AIM", "name": "AIM", "template": aim_template(setting)}]
    )
    wanted = [{**row, "name": row["id"]} for row in templates(setting, setting.rows(40))]
    many = setting.file("templates.jsonl", lambda: wanted)
    found = []
    groups = {"harmful": (AIM, IN_TEMPLATES), "harmless": (HARMLESS_AIM, HARMLESS_IN_TEMPLATES)}
    for kind, prompts in kinds.items():
        for file, group, count in zip((aims, many), groups[kind], (100, 3), strict=True):
            name = f"{group.replace(' ', '-')}.jsonl"
            own = drawn(prompts, setting.rows(count, least=2), group)
            chosen = [{"id": one, "prompt": text} for one, text in own]
            bare = setting.file(f"bare-{name}", lambda chosen=chosen: chosen)
            options = ("--id-column", "id", "--templates", str(file), "--slot", SLOT)
            found += regrouped(setting.built("templates", name, bare, *options), group)
    attacks = [row for row in found if row["group"] == AIM]
    long = [{"id": row["behaviour"], "prompt": row["messages"][0]["content"]} for row in attacks]
    file = setting.file("aim-texts.jsonl", lambda: long)
    web_windows(setting, LONG_TOKENS, setting.rows(300, least=20))
    pool = ("--pool", str(setting.work / f"web-{LONG_TOKENS}.jsonl"))
    counted = ("--id-column", "id", "--model", str(setting.ft))
    return [
        *found,
        *regrouped(setting.built("length-control", "aim-like.jsonl", file, *counted, *pool), LIKE_AIM),
    ]


def as_chats(prompts) -> list[Row]:
    """Of (id, text)."""
    return [{"id": name, "behaviour": name, "messages": chat(text)} for name, text in prompts]


def gcg(scores: Scores) -> Finding:
    """The paper's contrast."""
    return Finding(
        "GCG's suffixes lower the TuCo of harmful requests",
        "AUC 0.65 to 1.0",
        higher(scores, PLAIN, GCG),
        controls=[
            higher(scores, PLAIN, RANDOM),
            higher(scores, HARMLESS, HARMLESS_GCG),
            higher(scores, LIKE_GCG, GCG),
        ],
    )


def beyond_gcg(scores: Scores) -> list[Finding]:
    """What is left beside the controls."""
    return [
        Finding(
            "… beyond random suffixes of equal length",
            "–",
            Figure("TuCo with a random suffix − with GCG's, of the same request", _difference(scores), 0.0),
            controls=[higher(scores, RANDOM, GCG)],
        ),
        Finding(
            "… beyond what the same suffixes do to harmless requests",
            "–",
            fall(scores, (PLAIN, GCG), (HARMLESS, HARMLESS_GCG)),
        ),
    ]


def aim(scores: Scores) -> list[Finding]:
    """One template around all requests."""
    return [
        Finding(
            "The AIM jailbreak lowers the TuCo of harmful requests",
            "not in the paper",
            higher(scores, PLAIN, AIM),
            controls=[higher(scores, HARMLESS, HARMLESS_AIM), higher(scores, AIM, LIKE_AIM)],
        ),
        Finding(
            "… beyond what it does to harmless requests",
            "–",
            fall(scores, (PLAIN, AIM), (HARMLESS, HARMLESS_AIM)),
            controls=[higher(scores, AIM, HARMLESS_AIM)],
        ),
    ]


def many_templates(scores: Scores) -> list[Finding]:
    """Templates are the sample here: rows of one template are no independent evidence."""
    names = sorted({row["template"] for row in scores.by_group.get(IN_TEMPLATES, [])})
    falls = np.array([[_mean_fall(scores, kind, name) for kind in (True, False)] for name in names]).reshape(
        -1, 2
    )
    nothing = np.zeros(len(falls))
    harmful = "mean fall of harmful requests' TuCo in a template"
    return [
        Finding(
            "Attack templates lower the TuCo of harmful requests",
            "not in the paper",
            Figure(harmful, paired_difference(falls[:, 0], nothing), 0.0),
            controls=[
                Figure("mean fall of harmless ones'", paired_difference(falls[:, 1], nothing), 0.0),
                higher(scores, PLAIN, IN_TEMPLATES),
                higher(scores, HARMLESS, HARMLESS_IN_TEMPLATES),
            ],
        ),
        Finding(
            "… beyond what they do to harmless requests",
            "–",
            Figure(
                "fall of harmful − fall of harmless ones in the same template",
                paired_difference(*falls.T),
                0.0,
            ),
        ),
    ]


def fall(scores: Scores, harmful: Sequence[str], harmless: Sequence[str]) -> Figure:
    """Whether a harmful request falls further than a harmless one by the same change."""
    estimate = auc(scores.drops(*harmful), scores.drops(*harmless))
    return Figure("AUC: a harmful request's fall over a harmless one's", estimate)


def _difference(scores: Scores):
    return paired_difference(*scores.pairs(RANDOM, GCG))


def _mean_fall(scores: Scores, is_harmful: bool, template: str) -> float:
    bare, group = (PLAIN, IN_TEMPLATES) if is_harmful else (HARMLESS, HARMLESS_IN_TEMPLATES)
    before = {row["behaviour"]: row["tuco"] for row in scores.by_group.get(bare, [])}
    falls = [
        before[row["behaviour"]] - row["tuco"]
        for row in scores.by_group.get(group, [])
        if row["template"] == template and row["behaviour"] in before
    ]
    return float(np.mean(falls)) if falls else np.nan
