"""Rows of a step, against the definition spelled out token by token."""

import numpy as np
import pytest

from tuco_vllm.engine.step_plan import plan_step
from tuco_vllm.steering import Layers, Steering

PLAIN, SCORED, STEERED = Steering(), Steering(1.0, True), Steering(0.5)
LAYERS = 5


def by_layers(first: int, last: int, *, alpha: float = 0.5, scored: bool = False) -> Steering:
    return Steering(alpha, scored, None, Layers(first, last))


KINDS = [
    PLAIN,
    SCORED,
    STEERED,
    Steering(1.5, True),
    by_layers(1, 2),
    by_layers(0, 0),
    by_layers(3, 4, scored=True),
]


def spelled_out(lengths, logits, steerings, asked):
    """The same plan by loops over tokens."""
    token = logit = 0
    tokens, rows, scored, logit_rows, starts, requests = [], [], [], [], [0], []
    alphas, run = [[] for _ in range(LAYERS)], set()
    scored_starts, sampled = [0], []
    for place, (length, count, steering) in enumerate(zip(lengths, logits, steerings, strict=True)):
        if steering.alpha != 1 or steering.scored:
            requests.append(place)
            first, last = steering.layers or (0, LAYERS - 1)
            run |= set(range(LAYERS) if steering.scored else range(first, last + 1))
            for i in range(length):
                tokens.append(token + i)
                has_logits, is_scored = i >= length - count, i >= length - max(count, asked[place])
                if has_logits:
                    sampled.append(len(scored))
                    logit_rows.append(logit + i - (length - count))
                if is_scored:
                    scored.append(len(rows))
                if steering.alpha != 1 or is_scored:
                    rows.append(token + i)
                    for layer in range(LAYERS):
                        alphas[layer].append(steering.alpha if first <= layer <= last else 1.0)
            starts.append(len(rows))
            scored_starts.append(len(scored))
        token, logit = token + length, logit + count
    places = [tokens.index(row) for row in rows]
    scores = scored, scored_starts, sampled, logit_rows
    return requests, tokens, rows, places, starts, alphas, *scores, sorted(run)


@pytest.mark.parametrize("seed", range(60))
def test_plan_is_its_definition(seed):
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 9))
    logits = random.integers(1, 4, count)
    lengths = logits + random.integers(0, 6, count)
    steerings = [KINDS[i] for i in random.integers(0, len(KINDS), count)]
    asked = random.integers(0, lengths + 1) * random.integers(0, 2, count)
    given = asked if seed % 2 else None
    plan = plan_step(np.concatenate([[0], np.cumsum(lengths)]), logits, steerings, LAYERS, given)
    wanted = spelled_out(lengths, logits, steerings, asked if seed % 2 else 0 * asked)
    if not wanted[0]:
        assert plan is None
        return
    ranged = any(steering.layers for steering in steerings)
    assert len(plan.alpha_LS) == (LAYERS if ranged else 1)
    assert plan.alpha_LS.flags.c_contiguous
    plan = plan._replace(alpha_LS=np.broadcast_to(plan.alpha_LS, (LAYERS, len(plan.rows_S))))
    assert [part.tolist() for part in plan[:-1]] == [list(part) for part in wanted]
    assert plan.num_logits == logits.sum()


def test_plain_requests_cost_nothing():
    assert plan_step([0, 3, 4], [1, 1], [PLAIN, PLAIN], LAYERS) is None


def test_a_scored_request_costs_one_row_a_steered_one_all():
    plan = plan_step([0, 5, 10, 15], [1, 1, 1], [PLAIN, SCORED, STEERED], LAYERS)
    assert plan.rows_S.tolist() == [9, 10, 11, 12, 13, 14]
    assert plan.tokens_U.tolist() == list(range(5, 15))
    assert plan.logits_C.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("steerings", "run"),
    [
        ([by_layers(1, 2)], [1, 2]),
        ([by_layers(0, 0), PLAIN, by_layers(3, 4)], [0, 3, 4]),  # not what lies between
        ([by_layers(1, 3), by_layers(2, 4)], [1, 2, 3, 4]),
        ([by_layers(1, 2), SCORED], [0, 1, 2, 3, 4]),
        ([by_layers(1, 2), by_layers(0, 0, scored=True)], [0, 1, 2, 3, 4]),
        ([by_layers(1, 2), STEERED], [0, 1, 2, 3, 4]),
        # A number that float32 takes for 1: its blocks are those of a scored request of that alpha, too.
        ([Steering(1.0 + 1e-12)], [0, 1, 2, 3, 4]),
    ],
)
def test_a_step_costs_the_union_of_its_ranges(steerings, run):
    count = len(steerings)
    plan = plan_step(range(0, 3 * count + 1, 3), [1] * count, steerings, LAYERS)
    assert plan.pt_layers.tolist() == run
