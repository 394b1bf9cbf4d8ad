"""The arithmetic behind bench/corpus.py: its prompts, its model of what saturates, its sums over samples."""

import math

import pytest

WORDS = {"a": 1, "few": 1, "unlikely": 3, "words": 2}


@pytest.fixture
def model(bench):
    return bench("corpus_model")


@pytest.fixture
def long(bench):
    return bench("corpus_long")


@pytest.fixture
def row(model):
    return model.RowCosts(
        tokens=100,
        chunk_rows=200,
        read=1e-5,
        tokenise=1e-4,
        score=2e-5,
        write=1e-5,
        source_bytes=400,
        token_bytes=800,
        scored_bytes=1000,
        file_bytes=500,
    )


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


def test_a_load_is_what_is_asked_for_by_what_is_there(model, row):
    # 10 engines of 1000 tokens/s are 100 rows/s, half a chunk.
    assert model.loads(10, 1000, row, driver_chunk_seconds=0.01) == pytest.approx(
        {
            "reader": 100 * 1e-5,
            "tokenisers": 100 * 1e-4 / 5,
            "engine actor": 10 * 2e-5,
            "driver": 100 * 1e-5 + 0.5 * 0.01,
            "network": 100 * 1000 / model.NETWORK_BYTES_PER_SECOND,
        }
    )


def test_a_single_tokeniser_reads_as_well(model, row):
    assert model.loads(2, 1000, row, 0.01)["tokenisers"] == pytest.approx(20 * 1.1e-4)


@pytest.mark.parametrize("tokens_per_second", [100, 30_000, 300_000, 3e6])
def test_one_engine_more_than_it_bears_fills_a_resource(model, row, tokens_per_second):
    most = model.saturation(tokens_per_second, row, 0.01)
    for name, engines in most.items():
        if engines is None:
            assert model.loads(10**7, tokens_per_second, row, 0.01)[name] < 1
            continue
        assert model.loads(engines + 1, tokens_per_second, row, 0.01)[name] >= 1
        if engines:
            assert model.loads(engines, tokens_per_second, row, 0.01)[name] < 1


def test_what_grows_along_with_the_engines_is_never_first(model, row):
    most = model.saturation(30_000, row, 0.01)
    assert most["engine actor"] is most["tokenisers"] is None
    # 300 rows/s an engine: the driver has 3 ms of rows and 15 ms of chunks to do.
    assert model.first_to_saturate(most) == ("driver", math.ceil(1 / 0.018) - 1)


def test_an_engine_too_fast_for_the_python_beside_it_saturates_at_once(model, row):
    assert model.saturation(100 / row.score, row, 0.0)["engine actor"] == 0


def test_a_saturated_job_runs_at_the_speed_of_its_fullest_resource(model, row):
    bears = model.saturation(30_000, row, 0.01)["driver"]
    full, more = (model.flows(engines, 30_000, row, 0.01) for engines in (bears, 100 * bears))
    assert more["rows_per_second"] == pytest.approx(1 / (row.write + 0.01 / row.chunk_rows))
    assert more["rows_per_second"] == pytest.approx(full["rows_per_second"], rel=2 / bears)
    assert more["files_for_100M_rows"] == 10_000


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
        ("ray::MapWorker(Map(EngineActor)).__init__", "engine actors"),
        ("ray::MapWorker(FlatMap(read)->Map(Tokeniser)).submit", "reader and tokenisers"),
        ("ray::FlatMap(read)", "reader and tokenisers"),
        ("/x/ray/core/src/ray/raylet/raylet --raylet_socket_name=/x", "raylet, object store"),
        ("ray::DashboardAgent", "Ray's other processes"),
        ("python -c from multiprocessing", "other"),
    ],
)
def test_processes_are_told_apart(long, line, group):
    assert long.group_of(line) == group
