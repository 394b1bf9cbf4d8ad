"""What bench/corpus.py stands on: its prompts, budgets, sums over samples, its stand-ins, the made-up job."""

import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

WORDS = {"a": 1, "few": 1, "unlikely": 3, "words": 2}


@pytest.fixture
def model(bench):
    return bench("corpus_model")


@pytest.fixture
def long(bench):
    return bench("corpus_long")


def length(prompt):
    number, *words = prompt.split(" ")
    assert number.isdigit()
    return 1 + sum(WORDS[word] for word in words)


def test_prompts_are_distinct_and_long_enough_and_not_much_longer(model):
    texts = list(model.prompts(500, 15, seed=3, words=WORDS))
    assert len(set(texts)) == len(texts) == 500
    assert all(15 <= length(text) < 15 + max(WORDS.values()) for text in texts)


def test_prompts_are_the_same_again_and_others_with_another_seed(model):
    def texts(seed):
        return list(model.prompts(50, 15, seed, WORDS))

    assert texts(1) == texts(1)
    assert not set(texts(1)) & set(texts(2))


@pytest.mark.parametrize(
    ("sides", "ratios"),
    [
        ([0, 1], {"1 engine / bare engine": (1, 0)}),
        ([1, 2], {"2 engines / 1 engine": (2, 1)}),
        ([0, 1, 2], {"1 engine / bare engine": (1, 0), "2 engines / 1 engine": (2, 1)}),
        ([1], {}),
    ],
)
def test_one_engine_is_held_to_the_bare_one_and_more_to_the_fewest(model, sides, ratios):
    assert model.compared(sides) == ratios


@pytest.mark.parametrize(
    ("tokens", "ratio", "floor", "met"),
    [(256, 0.95, 0.95, True), (300, 0.94, 0.95, False), (15, 0.94, 0.90, True), (15, 0.89, 0.90, False)],
)
def test_short_prompts_and_long_ones_have_a_floor_of_their_own(model, tokens, ratio, floor, met):
    (budget,) = model.ratio_budget(tokens, ratio)
    assert (budget["floor"], budget["met"]) == (floor, met)
    assert model.ratio_budget(8, ratio) == []


def test_a_cost_is_held_to_the_most_that_it_may_be(model):
    assert [model.ceiling("x", value, 2.0)["met"] for value in (1.9, 2.0, 2.1)] == [True, True, False]


def test_a_slope_is_found_with_its_error(long):
    rows = [n * 1000 for n in range(100)]
    assert long.slope(rows, [500 + 3e-6 * n for n in rows]) == pytest.approx((3, 0), abs=1e-9)
    rise, error = long.slope(rows, [500 + 3e-6 * n + (-1) ** n for n in range(0, 100_000, 1000)])
    assert error > 0
    noisy = [500 + (1 if place % 2 else -1) for place in range(100)]
    rise, error = long.slope(rows, noisy)
    assert abs(rise) < 2 * error
    assert math.isnan(long.slope(rows[:2], [1, 2])[0])


def test_rows_between_two_looks_lie_on_a_line(long):
    assert long.rows_between([0, 2, 4, 6, 8], [0, 0, 20, 20, 60]) == [0, 10, 20, 40, 60]


def test_growth_leaves_out_the_warm_up_and_the_end(long):
    samples = []
    for second in range(100):
        sample = long.Sample(second, rows=min(second, 90) * 1000)
        # A start that climbs, work that grows by 20 MB a million rows, an end at which it all goes.
        sample.private["driver"] = (
            10 * second if second < 9 else 100 + 20e-6 * sample.rows if second < 90 else 0
        )
        samples.append(sample)
    memory = long.growth(samples)["memory"]
    assert memory["driver, private"] == {
        "after_warm_up_MB": 100.2,
        "at_the_end_MB": 101.8,
        "slope_MB_per_million_rows": 20.0,
        "standard_error": 0.0,
    }


@pytest.mark.parametrize(
    ("line", "group"),
    [
        ("VLLM::Worker", "engine core and its workers"),
        ("ray::WorkerActor.score", "workers"),
        ("ray::Watch", "Ray's other processes"),
        ("/x/ray/core/src/ray/raylet/raylet --raylet_socket_name=/x", "raylet, object store"),
        ("ray::DashboardAgent", "Ray's other processes"),
        ("python -c from multiprocessing", "other"),
    ],
)
def test_processes_are_told_apart(long, line, group):
    assert long.group_of(line) == group


def write_part(folder, unit, first, ids):
    columns = {"id": ids, "error": pa.array([None, "bad"], pa.string()), "prompt_tokens": [4, None]}
    table = pa.table(columns).replace_schema_metadata({"tuco.first_row": str(first)})
    pq.write_table(table, folder / f"part-{unit:08}-abcd.parquet")


def test_rows_of_a_stopped_run_may_be_missing_and_none_is_there_twice(long, tmp_path):
    write_part(tmp_path, 0, 0, ["a:0", "a:1"])
    write_part(tmp_path, 2, 4, ["a:4", "a:5"])
    assert long.check_rows(tmp_path, "a") == {"rows": 4, "errors": 2, "prompt_tokens": 8, "parts": 2}
    write_part(tmp_path, 1, 3, ["a:3", "a:4"])
    with pytest.raises(RuntimeError, match="begins at row 4, the part before it ends at 5"):
        long.check_rows(tmp_path, "a")


def test_rows_must_be_those_that_their_part_says(long, tmp_path):
    write_part(tmp_path, 0, 0, ["a:0", "a:2"])
    with pytest.raises(RuntimeError, match="ids are not a:0 to a:1"):
        long.check_rows(tmp_path, "a")


def test_what_sleeps_in_place_of_a_worker_answers_all_that_a_worker_does(bench):
    from tuco_vllm.corpus.actor import WorkerActor

    sleeper = bench("corpus_sleeper").Sleeper
    assert {*filter(str.isidentifier, vars(sleeper))} >= {*filter(str.isidentifier, vars(WorkerActor))} - {
        "__doc__"
    }


def test_the_books_of_a_made_up_job_are_kept_and_found_again(bench, tmp_path):
    billion = bench("corpus_billion")
    begun = billion.begun(str(tmp_path / "out"), 150)
    assert len([*(tmp_path / "out").glob("part-*")]) == 180
    assert begun["log_pieces"] == 2
    assert {*billion.resumed(str(tmp_path / "out"), 150)["seconds"]} > {"resume, log in one piece"}
    assert "1,843,200/2,048,000 rows" in billion.status(str(tmp_path / "out"), 150)["says"]
