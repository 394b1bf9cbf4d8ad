"""A whole sweep with a fake engine: what is asked, what is written, and what a kill leaves."""

import contextlib
import math

import pyarrow.dataset as ds
import pytest
from asking_models import FakeEngine, encoder_of, questions, write_pair, write_rows
from killed import Killed, kill_at

from tuco_vllm.config import resolve_pair
from tuco_vllm.errors import InputError
from tuco_vllm.sweep import run
from tuco_vllm.sweep.datasets import Asking
from tuco_vllm.sweep.run import SweepJob, run_sweep


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return resolve_pair(*write_pair(tmp_path_factory.mktemp("pair")))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(run, "_ANSWERS_PER_CHUNK", 12)


@pytest.fixture
def job_of(tmp_path):
    """A job over 10 questions; what it is given more than once replaces that."""

    def make(rows=None, **settings):
        path = write_rows(tmp_path / "q.jsonl", questions(10) if rows is None else rows)
        return SweepJob(
            **{
                "inputs": (path,),
                "dataset": "jsonl",
                "out": str(tmp_path / "out"),
                "alphas": (0.5, 1.5),
                **settings,
            }
        )

    return make


def answers(job):
    """All columns but the random id of the sweep, sorted."""
    files = sorted(str(path) for path in run.store_at(job.out).folder.glob("answers-*.parquet"))
    rows = ds.dataset(files).to_table().to_pylist() if files else []
    return sorted(rows, key=lambda row: (row["row"], row["first_layer"], row["last_layer"], row["alpha"]))


def test_every_question_at_every_alpha(pair, job_of, capsys):
    job, engine = job_of(), FakeEngine()
    run_sweep(job, pair, engine.opened)
    rows = answers(job)
    assert [(row["row"], row["alpha"]) for row in rows] == [
        (n, a) for n in range(10) for a in (0.5, 1.0, 1.5)
    ]
    assert {(row["first_layer"], row["last_layer"], row["dataset"]) for row in rows} == {(0, 1, "main")}
    encoder = encoder_of(pair.ft.directory)
    for row in rows:
        prompt = questions(10)[row["row"]]["prompt"]
        x, y = (encoder.tokenizer.encode(letter)[0] for letter in "xy")
        logps = [engine.of(tuple(encoder.tokenizer.encode(prompt)), token, row["alpha"]) for token in (x, y)]
        assert row["option_logps"] == pytest.approx(logps)
        assert row["mass"] == pytest.approx(sum(map(math.exp, logps)))
        assert row["prediction"] == logps.index(max(logps))
        assert row["correct"] == (row["prediction"] == row["row"] % 2)
        assert row["error"] is None
    assert "α = 1 is asked as well" in capsys.readouterr().err
    assert (run.store_at(job.out).folder / "_SUCCESS").is_file()


def test_all_alphas_of_a_chunk_are_one_batch_in_which_prefixes_are_neighbours(pair, job_of):
    engine = FakeEngine()
    run_sweep(job_of(), pair, engine.opened)
    assert [len(call) for call in engine.calls] == [12, 12, 6]
    assert [alpha for _, _, alpha in engine.calls[0]] == [0.5] * 4 + [1.0] * 4 + [1.5] * 4


def test_ft_itself_is_asked_once_for_several_ranges(pair, job_of):
    job, engine = job_of(layers=((0, 0), (1, 1))), FakeEngine()
    run_sweep(job, pair, engine.opened)
    asked = [alpha for call in engine.calls for _, _, alpha in call]
    assert asked.count(1.0) == 10
    assert sum(isinstance(alpha, dict) for alpha in asked) == 40
    rows = answers(job)
    assert len(rows) == 60
    at_1 = [row for row in rows if row["alpha"] == 1.0]
    assert [row["option_logps"] for row in at_1[::2]] == [row["option_logps"] for row in at_1[1::2]]
    ranged = [row["option_logps"] for row in rows if row["row"] == 0 and row["alpha"] == 0.5]
    assert ranged[0] != ranged[1]
    [first, *_] = sorted(run.store_at(job.out).folder.glob("answers-*.parquet"))
    table = ds.dataset(str(first)).to_table().slice(0, 6)  # a question's, in the grid's order
    assert table["first_layer"].to_pylist() == [0, 0, 0, 1, 1, 1]
    assert table["alpha"].to_pylist() == [0.5, 1.0, 1.5] * 2


def test_a_utility_is_swept_in_the_same_stream(pair, job_of, tmp_path):
    path = write_rows(tmp_path / "u.jsonl", questions(3, task="sums"))
    job, engine = job_of(utility=(path,), utility_dataset="jsonl"), FakeEngine()
    run_sweep(job, pair, engine.opened)
    assert engine.starts == 1
    assert [row["dataset"] for row in answers(job)] == ["main"] * 30 + ["utility"] * 9


def test_odd_rows_cost_themselves_and_reach_no_engine(pair, job_of):
    rows = [*questions(2), {"prompt": "z"}, {**questions(1)[0], "options": ["xa", "xb"], "answer": 0}]
    long = {"prompt": "w" * 5000, "options": ["x", "y"], "answer": 0}
    job, engine = job_of([*rows, long]), FakeEngine()
    run_sweep(job, pair, engine.opened)
    errors = {row["row"]: row["error"] for row in answers(job)}
    assert errors[0] is errors[1] is None
    assert "options is null" in errors[2]
    assert "begin with the same token" in errors[3]
    assert "limit" in errors[4]
    assert sum(len(call) for call in engine.calls) == 6
    assert all(
        row["correct"] is row["mass"] is row["prediction"] is None for row in answers(job) if row["error"]
    )


@pytest.mark.parametrize(("logp", "reason"), [(math.nan, "not a number"), (-math.inf, "no option has any")])
def test_an_answer_that_overflowed_is_an_error_at_that_alpha_only(pair, job_of, logp, reason):
    def of(prompt, token, alpha):
        return logp if alpha == 1.5 else -1.0

    job = job_of()
    run_sweep(job, pair, FakeEngine(of).opened)
    for row in answers(job):
        assert (row["error"] is not None) == (row["alpha"] == 1.5)
        assert row["error"] is None or reason in row["error"]


def test_of_equal_options_the_first_is_the_prediction(pair, job_of):
    job = job_of()
    run_sweep(job, pair, FakeEngine(lambda *_: -1.0).opened)
    assert {row["prediction"] for row in answers(job)} == {0}


def test_a_killed_sweep_goes_on_and_ends_as_an_undisturbed_one(pair, job_of, tmp_path):
    undisturbed = job_of(out=str(tmp_path / "whole"))
    run_sweep(undisturbed, pair, FakeEngine().opened)
    job = job_of()
    with pytest.raises(KeyboardInterrupt):
        run_sweep(job, pair, FakeEngine(dies_at=1).opened)
    assert len(answers(job)) == 12
    engine = FakeEngine()
    run_sweep(job, pair, engine.opened)
    assert [len(call) for call in engine.calls] == [12, 6]
    assert answers(job) == answers(undisturbed)
    run_sweep(job, pair, engine.opened)  # finished: no engine
    assert engine.starts == 1


def test_whatever_step_a_kill_comes_at_no_row_is_lost_or_doubled(pair, job_of, tmp_path, monkeypatch):
    undisturbed = job_of(out=str(tmp_path / "whole"))
    run_sweep(undisturbed, pair, FakeEngine().opened)
    for step in range(0, 40, 3):
        job = job_of(out=str(tmp_path / f"out{step}"))
        with monkeypatch.context() as patch:
            kill_at(patch, step)
            with contextlib.suppress(Killed):
                run_sweep(job, pair, FakeEngine().opened)
        run_sweep(job, pair, FakeEngine().opened)
        assert answers(job) == answers(undisturbed), step
        assert not list(run.store_at(job.out).folder.glob("_tuco/tmp/*"))


def test_a_part_that_was_deleted_is_asked_again(pair, job_of):
    job, engine = job_of(), FakeEngine()
    run_sweep(job, pair, FakeEngine().opened)
    before = answers(job)
    next(run.store_at(job.out).folder.glob("answers-00001-*")).unlink()
    run_sweep(job, pair, engine.opened)
    assert len(engine.calls) == 1
    assert answers(job) == before


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_part_that_was_cut_is_asked_again(pair, job_of, size):
    job, engine = job_of(), FakeEngine()
    run_sweep(job, pair, FakeEngine().opened)
    before = answers(job)
    part = next(run.store_at(job.out).folder.glob("answers-00001-*"))
    part.write_bytes(part.read_bytes()[:size])
    run_sweep(job, pair, engine.opened)
    assert len(engine.calls) == 1
    assert answers(job) == before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"alphas": (0.5, 1.25)}, "grid was"),
        ({"layers": ((0, 0),)}, "grid was"),
        ({"asking": Asking(limit=5)}, "limit was null and is 5"),
        ({"asking": Asking(chat=True)}, "chat was false and is true"),
        ({"system_prompt": "s"}, "chat was false"),
        ({"dtype": "float32"}, "dtype was"),
        ({"rows": questions(11)}, "its files, or what is in them"),
    ],
)
def test_another_sweep_is_refused_and_overwritten_when_asked(pair, job_of, change, reason):
    run_sweep(job_of(), pair, FakeEngine().opened)
    engine = FakeEngine()
    with pytest.raises(InputError, match=reason):
        run_sweep(job_of(**change), pair, engine.opened)
    assert engine.starts == 0
    job = job_of(**change, overwrite=True)
    run_sweep(job, pair, engine.opened)
    assert engine.starts == 1
    numbers = [(row["row"], row["first_layer"], row["alpha"]) for row in answers(job)]
    assert len(numbers) == len(set(numbers))


def test_nothing_is_removed_before_the_engine_has_started(pair, job_of):
    run_sweep(job_of(), pair, FakeEngine().opened)
    before = answers(job_of())

    def fails(_):
        raise InputError("no engine")

    with pytest.raises(InputError, match="no engine"):
        run_sweep(job_of(overwrite=True), pair, fails)
    assert answers(job_of()) == before


def test_a_place_with_other_files_is_refused(pair, job_of, tmp_path):
    out = tmp_path / "out"
    (out / "_tuco").mkdir(parents=True)
    (out / "_tuco/job.json").write_text("{}")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="holds a tuco score"):
            run_sweep(job_of(overwrite=overwrite), pair, FakeEngine().opened)
    (out / "_tuco/job.json").unlink()
    (out / "answers-00000-ab.parquet").write_text("")
    with pytest.raises(InputError, match=r"without sweep\.json"):
        run_sweep(job_of(), pair, FakeEngine().opened)
    for text in ("{", "[]", '{"identity": 3}'):
        (out / "sweep.json").write_text(text)
        with pytest.raises(InputError, match=r"sweep\.json"):
            run_sweep(job_of(), pair, FakeEngine().opened)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        run_sweep(job_of(out=str(tmp_path / "file")), pair, FakeEngine().opened)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"alphas": (3.0,)}, "from 0 to 2"),
        ({"layers": ((0, 2),)}, "there are 2 layers"),
        ({"dataset": "csv"}, "no kind of data"),
        ({"utility": ("x",)}, "belong together"),
        ({"utility_dataset": "jsonl"}, "belong together"),
        ({"asking": Asking(few_shot=("x",))}, "--few-shot is for mmlu-csv"),
        ({"asking": Asking(chat=True), "chat_template": "none"}, "needs a chat template"),
        ({"chat_template": "missing.jinja"}, "cannot read chat template"),
        ({"inputs": ("missing",)}, "no such file"),
    ],
)
def test_bad_input_is_found_before_an_engine_starts(pair, job_of, change, reason, tmp_path):
    engine = FakeEngine()
    with pytest.raises(InputError, match=reason):
        run_sweep(job_of(**change), pair, engine.opened)
    assert engine.starts == 0
    assert not (tmp_path / "out").exists()
