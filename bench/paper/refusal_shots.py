"""§5.5: where a prompt shows refusals, PT's output comes to be like FT's. OutputCo falls with it; does TuCo?

Harmful requests stand behind 0 to 8 others that were refused. Beside them the same requests behind as many
harmless questions that were answered: what any examples do.
"""

import numpy as np
from asked import held_out, questions_with_answers
from findings import Figure, Finding, Told, summaries
from many_shot import by_shots
from setting import Scores, Setting, regrouped

from tuco_vllm.analysis.statistics import paired_difference

SHOTS = (0, 1, 2, 4, 8)
REFUSED, ANSWERED = "behind refusals", "behind answers"
LN = "ln of {} behind 8 {} over behind none"


def findings(setting: Setting) -> Told:
    """Score and compare."""
    scores = setting.scored("refusal_shots", built(setting), "--no-layers", "--output-co")
    outputs = Scores([{**row, "tuco": row["output_co"]} for row in scores.rows])
    curves = {
        f"{name}, {group}": by_shots(own, group)
        for name, own in (("TuCo", scores), ("OutputCo", outputs))
        for group in (REFUSED, ANSWERED)
    }
    both = [changes(scores, REFUSED, column) for column in ("tuco", "output_co")]
    answered = [changes(scores, ANSWERED, column) for column in ("tuco", "output_co")]
    nothing = np.zeros(len(answered[0]))
    found = [
        Finding(
            "Refusals in the prompt lower OutputCo",
            "OutputCo and TuCo over the number of shots; the direction is our reading",
            Figure(LN.format("OutputCo", "refusals"), paired_difference(both[1], both[1] * 0), 0.0),
            above=False,
            controls=[
                Figure(LN.format("TuCo", "refusals"), paired_difference(both[0], both[0] * 0), 0.0),
                Figure(LN.format("OutputCo", "answers"), paired_difference(answered[1], nothing), 0.0),
                Figure(LN.format("TuCo", "answers"), paired_difference(answered[0], nothing), 0.0),
            ],
        ),
        Finding(
            "… further than they lower TuCo",
            "–",
            Figure("ln-change of OutputCo − of TuCo, of a request", paired_difference(both[1], both[0]), 0.0),
            above=False,
            controls=[Figure("the same behind answers", paired_difference(answered[1], answered[0]), 0.0)],
        ),
    ]
    return Told(found, summaries(scores), curves, scores.errors)


def built(setting: Setting) -> list:
    """Both groups by ``tuco build``."""
    # As many as a refusal needs examples, whatever the scale.
    requests = [
        {"id": name, "prompt": text} for name, text, _ in held_out(setting, setting.rows(50, least=12))
    ]
    asked = setting.file("refusal_shots-asked.jsonl", lambda: requests)
    told = [{"prompt": text, "target": answer} for text, answer in questions_with_answers(setting)]
    examples = setting.file("refusal_shots-answers.jsonl", lambda: told)
    options = ("--id-column", "id", "--shots", ",".join(map(str, SHOTS)))
    refused = setting.built("refusal-shots", "refusal_shots-refused.jsonl", asked, *options)
    answered = setting.built(
        "many-shot", "refusal_shots-answered.jsonl", asked, *options, "--examples", str(examples)
    )
    return [*regrouped(refused, REFUSED), *regrouped(answered, ANSWERED)]


def changes(scores: Scores, group: str, column: str):
    """ln of a request's figure behind the most examples over behind none."""
    found: dict[str, dict[int, float]] = {}
    for row in scores.by_group.get(group, []):
        found.setdefault(row["behaviour"], {})[row["shots"]] = row[column]
    both = [own for own in found.values() if own.get(SHOTS[0]) and own.get(SHOTS[-1])]
    return np.log([own[SHOTS[-1]] for own in both]) - np.log([own[SHOTS[0]] for own in both])
