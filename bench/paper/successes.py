"""§5.4: among attacks, those that succeed have the lower TuCo. Within a kind of attack too?

An attack succeeds where two of eight sampled answers of up to 30 tokens refuse nothing (``tuco build
outcomes``). Kinds of attack differ in length, template *and* success, so a difference between all successes
and all failures may be one between kinds: hence each kind by itself, pairs of equal length, and what the
length alone would tell.
"""

from asked import SLOT, aim_template, attacked, drawn, templates
from findings import Figure, Finding, Told, at_equal_length, higher, summaries
from setting import Row, Scores, Setting, chat

from tuco_vllm.analysis.statistics import auc, tpr_at_fpr
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
    setting.tuco("build", "outcomes", str(asked), f"--out={out}", *pair)
    outcome = {row["id"]: DONE if row["jailbroken"] else FAILED for row in read_outcomes(out)}
    told = [
        {**row, "kind": row["group"], "outcome": outcome[row["id"]]}
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
    texts = [
        *(
            ("GCG", f"{row['id']}:{row['model']}", row["prompt"])
            for row in drawn(rows, setting.rows(264), "s")
        ),
        *(("AIM", name, aim.replace(SLOT, goal)) for name, goal in drawn(goals, setting.rows(88), "aim")),
        *(
            ("templates", f"{name}:{key}", template.replace(SLOT, goal))
            for key, template in known
            for name, goal in drawn(goals, 4, f"template {key}")
        ),
    ]
    return [
        {"id": f"{kind}:{name}", "group": kind, "behaviour": name, "messages": chat(text)}
        for kind, name, text in texts
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
        )
    ]
    for kind in KINDS:
        own = _grouped([row for row in told if row["kind"] == kind])
        tokens = auc(own.of(FAILED, "prompt_tokens"), own.of(DONE, "prompt_tokens"))
        done, failed = len(own.of(DONE)), len(own.of(FAILED))
        found.append(
            Finding(
                f"… within one kind: {kind} ({done} succeeded, {failed} failed)",
                "not stated",
                higher(own, FAILED, DONE),
                controls=[Figure("AUC of the prompt's length alone", tokens)],
            )
        )
    return found


def _grouped(told: list[Row], by_kind: bool = False) -> Scores:
    """By outcome, or by kind and outcome."""
    return Scores(
        [{**row, "group": f"{row['kind']}, {row['outcome']}" if by_kind else row["outcome"]} for row in told]
    )
