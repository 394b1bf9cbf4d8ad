"""§5.3: many-shot jailbreaks. TuCo against the number of examples, and what as many harmless ones do.

A dialogue of k requests and complying answers stands before a request that nobody should comply with, in one
user turn. Longer prompts may have a lower TuCo whatever is in them, so the same requests stand behind as long
harmless dialogues, and harmless requests behind the harmful ones. Each request has examples of its own; those
of k are the first of those of a larger k.
"""

import numpy as np
from asked import harmless, held_out, questions_with_answers
from findings import Figure, Finding, Told, summaries
from setting import Scores, Setting, regrouped

from tuco_vllm.analysis.statistics import mean, paired_difference, spearman

SHOTS = (1, 2, 4, 8, 16, 32, 64, 128)
ATTACK, TURNS = "harmful examples, harmful request", "the same as turns of a chat"
BENIGN_SHOTS, BENIGN_REQUEST = "harmless examples, harmful request", "harmful examples, harmless request"
GROUPS = (ATTACK, BENIGN_SHOTS, BENIGN_REQUEST, TURNS)


def findings(setting: Setting) -> Told:
    """Score and compare."""
    scores = setting.scored(
        "many_shot", built(setting), "--no-layers", "--max-model-len", str(setting.longest)
    )
    curves = {group: by_shots(scores, group) for group in GROUPS}
    main = Finding(
        "TuCo falls with the number of examples of a many-shot jailbreak",
        "falls, 1 to 128 shots",
        Figure("rank correlation with the number of shots, mean over requests", rank(scores, ATTACK), 0.0),
        above=False,
        controls=[
            *(
                Figure(f"the same, {group}", rank(scores, group), 0.0)
                for group in (BENIGN_SHOTS, BENIGN_REQUEST, TURNS)
            ),
            Figure("TuCo, most shots − one", ends(scores, ATTACK), 0.0),
        ],
    )
    first, second = (slopes(scores, group) for group in (ATTACK, BENIGN_SHOTS))
    both = [name for name in first if name in second]
    excess = paired_difference([first[name] for name in both], [second[name] for name in both])
    others = slopes(scores, BENIGN_REQUEST)
    measure = "slope of TuCo, a doubling of tokens: harmful − harmless examples"
    beyond = Finding(
        "… beyond what as many harmless examples do",
        "–",
        Figure(measure, excess, 0.0),
        above=False,
        controls=[
            Figure(f"slope, {ATTACK}", mean(list(first.values())), 0.0),
            Figure(f"slope, {BENIGN_SHOTS}", mean(list(second.values())), 0.0),
            Figure(f"slope, {BENIGN_REQUEST}", mean(list(others.values())), 0.0),
        ],
    )
    return Told([main, beyond], summaries(scores), curves, scores.errors)


def built(setting: Setting) -> list:
    """The rows of all groups, by ``tuco build many-shot``; ``behaviour`` is the request, ``shots`` is k."""
    count = setting.rows(16, least=3)
    pairs = held_out(setting, 200)
    requests = {
        "harmful": [{"id": name, "prompt": text} for name, text, _ in held_out(setting, count)],
        "harmless": [{"id": name, "prompt": text} for name, text in harmless(setting, count)],
    }
    complying = [{"prompt": text, "target": answer} for _, text, answer in pairs]
    correct = [{"prompt": asked, "target": told} for asked, told in questions_with_answers(setting)]
    examples = {"complying": complying, "correct": correct}
    asked = {
        ATTACK: ("harmful", "complying", "text"),
        BENIGN_SHOTS: ("harmful", "correct", "text"),
        BENIGN_REQUEST: ("harmless", "complying", "text"),
        TURNS: ("harmful", "complying", "turns"),
    }
    rows = []
    for group, (request, example, form) in asked.items():
        inputs = setting.file(f"many_shot-{request}.jsonl", lambda request=request: requests[request])
        shown = setting.file(f"many_shot-{example}.jsonl", lambda example=example: examples[example])
        options = ["--id-column", "id", "--examples", str(shown), "--form", form]
        options += ["--shots", ",".join(map(str, SHOTS))]
        name = f"many_shot-{request}-{example}-{form}.jsonl"
        rows += regrouped(setting.built("many-shot", name, inputs, *options), group)
    return rows


def by_shots(scores: Scores, group: str) -> dict:
    """k -> the mean of TuCo, of those k at which every request could be scored."""
    found: dict[int, list[float]] = {}
    for row in scores.by_group.get(group, []):
        found.setdefault(row["shots"], []).append(row["tuco"])
    most = max(map(len, found.values()), default=0)
    return {shots: mean(found[shots]) for shots in sorted(found) if len(found[shots]) == most}


def by_request(scores: Scores, group: str) -> dict[str, list]:
    """request -> its rows, the fewest shots first."""
    found: dict[str, list] = {}
    for row in sorted(scores.by_group.get(group, []), key=lambda row: row["shots"]):
        found.setdefault(row["behaviour"], []).append(row)
    return found


def rank(scores: Scores, group: str):
    """The mean over requests of Spearman's correlation of TuCo with k."""
    own = by_request(scores, group).values()
    return mean([spearman([r["shots"] for r in rows], [r["tuco"] for r in rows]).value for rows in own])


def ends(scores: Scores, group: str):
    """TuCo with the most shots that fit, less TuCo with the fewest, of each request."""
    own = [rows for rows in by_request(scores, group).values() if len(rows) > 1]
    return paired_difference([rows[-1]["tuco"] for rows in own], [rows[0]["tuco"] for rows in own])


def slopes(scores: Scores, group: str) -> dict[str, float]:
    """request -> the least-squares slope of TuCo against log2 of its tokens."""
    return {
        name: float(np.polyfit(np.log2([r["prompt_tokens"] for r in rows]), [r["tuco"] for r in rows], 1)[0])
        for name, rows in by_request(scores, group).items()
        if len(rows) > 2
    }
