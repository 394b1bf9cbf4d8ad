"""Parts of the replication on planted scores: what is there is found, what its control explains is not."""

import numpy as np
import pytest
from paper_rows import row


@pytest.fixture(scope="module")
def scores(paper):
    return paper("setting").Scores


def harmful_and_harmless(attack, control, effect, side_effect):
    """40 requests of each kind; the attack lowers the harmful by ``effect``, all by ``side_effect``."""
    draw = np.random.default_rng(0)
    rows = []
    for kind, (before, after) in {"harmful": attack, "harmless": control}.items():
        for n in range(40):
            base = 0.5 + draw.normal(0, 0.02)
            fall = side_effect + (effect if kind == "harmful" else 0) + draw.normal(0, 0.01)
            rows += [row(before, f"{kind}{n}", base), row(after, f"{kind}{n}", base - fall)]
    return rows


@pytest.mark.parametrize(("effect", "expected"), [(0.1, "same"), (0.0, "none seen"), (-0.1, "opposite")])
def test_what_the_suffix_does_to_everything_is_not_the_attack(paper, scores, effect, expected):
    attacks = paper("attacks")
    groups = ((attacks.PLAIN, attacks.GCG), (attacks.HARMLESS, attacks.HARMLESS_GCG))
    told = scores(harmful_and_harmless(*groups, effect, side_effect=0.15))
    assert attacks.beyond_gcg(told)[1].verdict == expected
    assert effect < 0 or attacks.gcg(told).verdict == "same"


def test_templates_are_the_sample_not_their_rows(paper, scores):
    attacks = paper("attacks")
    rows = [row(group, "x", 0.5) for group in (attacks.PLAIN, attacks.HARMLESS)]
    for group, fall in ((attacks.IN_TEMPLATES, 0.2), (attacks.HARMLESS_IN_TEMPLATES, 0.05)):
        rows += [
            row(group, "x", 0.5 - fall - n / 1000, id=f"{group}{n}{again}", template=f"t{n}")
            for n in range(5)
            for again in range(7)
        ]
    harmful, beyond = attacks.many_templates(scores(rows))
    assert harmful.ours.estimate.n == beyond.ours.estimate.n == 5
    assert beyond.ours.estimate.value == pytest.approx(0.15)


def test_many_shots_rank_and_slope(paper, scores):
    many = paper("many_shot")
    rows = [
        row(group, f"r{n}", 0.5 - slope * np.log2(k * 30) + n / 100, k * 30, id=f"{group}{n}{k}", shots=k)
        for group, slope in ((many.ATTACK, 0.02), (many.BENIGN_SHOTS, 0.005))
        for n in range(6)
        for k in many.SHOTS
    ]
    told = scores(rows)
    assert many.rank(told, many.ATTACK).value == pytest.approx(-1)
    assert many.slopes(told, many.ATTACK)["r0"] == pytest.approx(-0.02)
    assert many.ends(told, many.ATTACK).value == pytest.approx(-0.14)


def test_a_curve_ends_where_a_request_no_longer_fits(paper, scores):
    many = paper("many_shot")
    rows = [
        row(many.ATTACK, f"r{n}", 0.5 + n, id=f"{n}{k}", shots=k)
        for n in range(3)
        for k in (1, 2, 4)
        if n < 2 or k < 4
    ]
    assert list(many.by_shots(scores(rows), many.ATTACK)) == [1, 2]


def test_languages_compare_requests_that_are_there_in_all(paper, scores):
    languages = paper("languages")
    rows = [
        row("g", name, tuco, id=f"{name}{lang}", kind="harmful", lang=lang)
        for name, tucos in {"a": (0.5, 0.4, 0.3, 0.1), "b": (0.9, 0.9, 0.9)}.items()
        for lang, tuco in zip(("en", "zh", "bn", "sw"), tucos, strict=False)
    ]
    falls = languages.falls(scores(rows), "harmful", ("en", "zh"), ("bn", "sw"))
    assert falls == pytest.approx([0.25])


def test_success_by_kind_alone_is_none_within_a_kind(paper):
    """One kind succeeds more often and has a low TuCo: that is seen among all, and not within a kind."""
    successes, draw = paper("successes"), np.random.default_rng(1)
    told = [
        attack(kind, f"{n}", low + draw.normal(0, 0.02), f"g{n % 30}", int(draw.binomial(8, chance)))
        for kind, low, chance in (("GCG", 0.5, 0.85), ("templates", 0.3, 0.6))
        for n in range(150)
    ]
    everything, graded, gcg, _, templates = successes.compared(told)
    assert everything.verdict == graded.verdict == "same"
    assert gcg.verdict == templates.verdict == "none seen"
    of_kinds = graded.controls[0], graded.controls[2]
    assert all(abs(each.estimate.value) < 0.2 for each in of_kinds)


def test_within_a_request_what_it_is_does_not_count(paper):
    successes = paper("successes")
    told = [
        attack("GCG", goal, base - 0.1 * (refusals < 7), goal, refusals)
        for goal, base in (("a", 0.9), ("b", 0.2), ("c", 0.5))
        for refusals in (7, 6)
        if (goal, refusals) != ("c", 7)
    ]
    (figure,) = successes.within(told, "GCG")
    assert (figure.estimate.value, figure.estimate.n) == (pytest.approx(0.1), 2)


def test_changes_are_relative_and_of_requests_with_both_ends(paper, scores):
    shots = paper("refusal_shots")
    rows = [
        row(shots.REFUSED, name, tuco, id=f"{name}{k}", shots=k, output_co=tuco / 2)
        for name, own in {"a": {0: 0.4, 8: 0.2}, "b": {0: 0.4}}.items()
        for k, tuco in own.items()
    ]
    assert shots.changes(scores(rows), shots.REFUSED, "tuco") == pytest.approx([np.log(0.5)])


def attack(kind, name, tuco, goal, refusals):
    """An attack of which so many of 8 answers refuse; it succeeds where two do not."""
    outcome = "succeeded" if refusals < 7 else "failed"
    own = {"kind": kind, "goal": goal, "way": "", "refusals": refusals, "outcome": outcome}
    return row(kind, name, tuco, id=f"{kind}{name}{refusals}", **own)
