"""§5.4: among attacks, those that succeed have the lower TuCo. Within a kind of attack too?

An attack succeeds where two of eight sampled answers of up to 30 tokens refuse nothing (``tuco build
outcomes``). Kinds of attack differ in length, template *and* success, so a difference between all successes
and all failures may be one between kinds: hence each kind by itself, pairs of equal length, and what the
length alone would tell. Rows of one request or template are not independent, so these intervals are too
narrow; those within a request or a template are not. A small model whose answers are sampled seldom refuses
seven times of eight: so the number of refusals is looked at besides, of which success is a threshold.
"""

import numpy as np
from asked import SLOT, aim_template, attacked, drawn, templates
from findings import Figure, Finding, Told, at_equal_length, higher, summaries
from setting import Row, Scores, Setting, chat

from tuco_vllm.analysis.statistics import auc, paired_difference, spearman, tpr_at_fpr
from tuco_vllm.builders.outcomes import read_outcomes

KINDS = ("GCG", "AIM", "templates")
ROOM = 30
"""Tokens of an answer."""
FAILED, DONE = "failed", "succeeded"


def findings(setting: Setting) -> Told:
    """Score, sample, and compare."""
    scores = setting.scored("successes", attacks(setting), "--no-layers")
    fits = {row["id"] for row in scores.rows if row["prompt_tokens"] + ROOM < min(setting.longest, 4096)}
    asked = setting.file(
        "successes-asked.jsonl", lambda: [row for row in attacks(setting) if row["id"] in fits]
    )
    out = setting.work / "successes-outcomes.jsonl"
    pair = (f"--pt={setting.pt}", f"--ft={setting.ft}", f"--max-model-len={min(setting.longest, 4096)}")
    setting.tuco("build", "outcomes", str(asked), f"--out={out}", *pair, "--enforce-eager")
    outcomes = {row["id"]: row for row in read_outcomes(out)}
    told = [
        {
            **row,
            "kind": row["group"],
            "outcome": DONE if outcomes[row["id"]]["jailbroken"] else FAILED,
            "refusals": outcomes[row["id"]]["refusals"],
        }
        for row in scores.rows
        if row["id"] in fits
    ]
    return Told(compared(told), summaries(_grouped(told, by_kind=True)), errors=scores.errors)


def attacks(setting: Setting) -> list[Row]:
    """All kinds, the group being the kind: GCG's for each target model, AIM, and requests in templates."""
    rows = attacked(setting)
    goals = sorted({(row["id"], row["goal"]) for row in rows})
    aim = aim_template(setting)
    known = [(each["id"], each["template"]) for each in templates(setting, setting.rows(40))]
    own = setting.rows(88)
    told = [
        *(("GCG", row["id"], row["model"], row["prompt"]) for row in drawn(rows, 3 * own, "gcg")),
        *(("AIM", name, "", aim.replace(SLOT, goal)) for name, goal in drawn(goals, own, "aim")),
        *(
            ("templates", name, key, template.replace(SLOT, goal))
            for key, template in known
            for name, goal in drawn(goals, 4, f"template {key}")
        ),
    ]
    return [
        {"id": f"{kind}:{goal}:{way}", "group": kind, "goal": goal, "way": way, "messages": chat(text)}
        for kind, goal, way, text in told
    ]


def compared(told: list[Row]) -> list[Finding]:
    """All kinds at once, then each."""
    everything = _grouped(told)
    length = auc(everything.of(FAILED, "prompt_tokens"), everything.of(DONE, "prompt_tokens"))
    caught = tpr_at_fpr(everything.of(DONE), everything.of(FAILED), 0.05, above=False)
    found = [
        Finding(
            "Attacks that succeed have a lower TuCo than those that fail",
            "lower; AUC and TPR at 5 % FPR",
            higher(everything, FAILED, DONE),
            controls=[
                Figure("share of successes below all but 5 % of failures", caught, 0.05),
                at_equal_length(everything, FAILED, DONE),
                Figure("AUC of the prompt's length alone, failed over succeeded", length),
            ],
        ),
        Finding(
            "… by degrees: the fewer of its answers refuse, the lower an attack's TuCo",
            "–",
            Figure("rank correlation of TuCo and refusals of 8", graded(told), 0.0),
            controls=[
                *(Figure(f"the same, {kind}", graded(told, kind), 0.0) for kind in KINDS),
                Figure("of the prompt's length and refusals", graded(told, column="prompt_tokens"), 0.0),
            ],
        ),
    ]
    for kind in KINDS:
        own = _grouped([row for row in told if row["kind"] == kind])
        tokens = auc(own.of(FAILED, "prompt_tokens"), own.of(DONE, "prompt_tokens"))
        done, failed = len(own.of(DONE)), len(own.of(FAILED))
        found.append(
            Finding(
                f"… within one kind: {kind} ({done} succeeded, {failed} failed)",
                "–",
                higher(own, FAILED, DONE),
                controls=[Figure("AUC of the prompt's length alone", tokens), *within(own.rows, kind)],
            )
        )
    return found


def graded(told: list[Row], kind: str | None = None, column: str = "tuco"):
    """Rank correlation of a column with how many of a prompt's answers refuse."""
    own = [row for row in told if kind in (None, row["kind"])]
    return spearman([row[column] for row in own], [row["refusals"] for row in own])


def within(told: list[Row], kind: str) -> list[Figure]:
    """Of requests, or templates, of which some rows failed and some succeeded: the difference within each.

    This is what neither the request nor the template explains, and its cases are independent.
    """
    found = []
    for column, name in {"GCG": {"goal": "request"}, "templates": {"way": "template"}}.get(kind, {}).items():
        means: dict[str, dict[str, list[float]]] = {}
        for row in told:
            means.setdefault(row[column], {}).setdefault(row["outcome"], []).append(row["tuco"])
        both = [own for own in means.values() if len(own) == 2]
        failed, done = ([float(np.mean(own[outcome])) for own in both] for outcome in (FAILED, DONE))
        measure = f"TuCo, failed − succeeded, within a {name} ({len(both)} have both)"
        found.append(Figure(measure, paired_difference(failed, done), 0.0))
    return found


def _grouped(told: list[Row], by_kind: bool = False) -> Scores:
    """By outcome, or by kind and outcome."""
    return Scores(
        [{**row, "group": f"{row['kind']}, {row['outcome']}" if by_kind else row["outcome"]} for row in told]
    )
