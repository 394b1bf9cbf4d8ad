"""Workers on Ray, with fake engines: same rows as without Ray, whatever dies on the way."""

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import fake_scorer
import pyarrow.parquet as pq
import pytest
from deadly_scorer import DeadlyScorer, without_memory
from fake_scorer import FakeScorer, LocalWorkers, make_encoder

from tuco_vllm.config import resolve_pair
from tuco_vllm.corpus import cluster as clusters
from tuco_vllm.corpus import readers
from tuco_vllm.corpus import run as running
from tuco_vllm.corpus.cluster import Cluster
from tuco_vllm.corpus.driver import Workers
from tuco_vllm.corpus.job import ScoreJob
from tuco_vllm.errors import EngineError, InputError
from tuco_vllm.store import LocalStore

pytestmark = pytest.mark.engine

ROWS = 6_000


@pytest.fixture(scope="module")
def cluster():
    """Ray on this machine, for all tests of the module; its workers find the fake engines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(fake_scorer.__file__).parent), prepend=os.pathsep)
        with Cluster(engines=2).joined():
            yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("in") / "x.jsonl"
    prompts = ["" if n % 7 == 0 else f"prompt {n}" for n in range(ROWS)]
    path.write_text("".join(json.dumps({"prompt": p, "n": n}) + "\n" for n, p in enumerate(prompts)))
    return path


def read(out):
    return pq.read_table(out).to_pylist(), json.loads((out / "_tuco/run.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(corpus, models, tmp_path_factory):
    out, pair = tmp_path_factory.mktemp("undisturbed") / "out", resolve_pair(*models)
    job = ScoreJob((str(corpus),), str(out))
    running.score_corpus(job, pair, lambda _: LocalWorkers(job, models[1]))
    return read(out)[0]


@pytest.fixture
def score(cluster, corpus, models, tmp_path):
    """Score the corpus; returns its rows, and run.json."""

    def call(start_engine=FakeScorer, engines=1, make_encoder=None, **options):
        out = tmp_path / "out"
        job = ScoreJob((str(corpus),), str(out), **{"rows_per_file": 500, **options})
        make_encoder = make_encoder or partial(fake_scorer.make_encoder, models[1])
        workers = Workers(Cluster(engines), start_engine, make_encoder)
        running.score_corpus(job, resolve_pair(*models), lambda _: workers, engines=engines)
        return read(out)

    return call


def token_ids(models, text):
    return make_encoder(models[1]).encode(text).token_ids


def test_the_rows_are_those_of_one_process_in_order(score, undisturbed, tmp_path):
    (tmp_path / "marks").mkdir()
    rows, record = score(partial(DeadlyScorer, folder=tmp_path / "marks", together=2), engines=2)
    assert rows == undisturbed
    assert [engine["state"] for engine in record["engines"]] == ["ready", "ready"]
    assert all(engine["rows"] for engine in record["engines"])
    assert sum(engine["rows"] for engine in record["engines"]) == ROWS
    assert record["counts"]["errors"] == sum(row["error"] is not None for row in undisturbed)


def test_deaths_cost_no_row_and_double_none_and_what_causes_them_is_set_aside(
    score, undisturbed, models, tmp_path
):
    """Processes killed by hand, one row that its engine dies of and one that its process dies of."""
    marks = tmp_path / "marks"
    marks.mkdir()
    poison, deadly = [token_ids(models, "prompt 1003")], [token_ids(models, "prompt 4502")]
    start = partial(DeadlyScorer, folder=marks, poison=poison, deadly=deadly, kill_at=[50, 900], together=2)
    rows, record = score(start, engines=2)
    reasons = {
        1003: "the engine died twice on this row: boom",
        4502: "the engine's process died twice on this row",
    }
    assert_only_these_are_set_aside(rows, undisturbed, reasons)
    assert record["set_aside_rows"] == [1003, 4502]
    left = sorted(path.name.split("-")[0] for path in marks.iterdir())
    assert left.count("kill") == 2
    # Twice alone; before that, twice with its unit, unless it was there that a process was killed by hand.
    assert 2 <= left.count("deadly") <= 4
    assert left.count("poison") >= 2
    assert left.count("engine") > 4  # two processes to begin with, and others for those that died
    assert max(engine["starts"] for engine in record["engines"]) > 1


def assert_only_these_are_set_aside(rows, undisturbed, reasons):
    assert len(rows) == len(undisturbed)
    for n, row in enumerate(rows):
        if n in reasons:
            assert (row["error"], row["tuco"], row["n"]) == (reasons[n], None, n)
        else:
            assert row == undisturbed[n]


class DeadlyEncoder:
    """Kills its process at one prompt, as a tokenizer may that is not Python."""

    def __init__(self, ft, deadly):
        self._encoder, self._deadly = make_encoder(ft), deadly

    def __getattr__(self, name):
        return getattr(self._encoder, name)

    def __setattr__(self, name, value):
        if name.startswith("_"):
            object.__setattr__(self, name, value)
        else:
            setattr(self._encoder, name, value)

    def encode(self, prompt, **options):
        if prompt == self._deadly:
            os._exit(11)
        return self._encoder.encode(prompt, **options)


def test_a_row_that_kills_the_tokenizer_is_set_aside(score, undisturbed, models):
    rows, record = score(make_encoder=partial(DeadlyEncoder, models[1], "prompt 2501"))
    reasons = {2501: "the engine's process died twice on this row"}
    assert_only_these_are_set_aside(rows, undisturbed, reasons)
    assert record["set_aside_rows"] == [2501]


def encoder_beside_a_deadly_reader(ft, deadly):
    """The encoder of a process that dies of reading one record, as of a library that is not Python."""
    parse = readers.parse_json

    def parse_json(text):
        return os._exit(11) if deadly in text else parse(text)

    readers.parse_json = parse_json
    return make_encoder(ft)


def test_a_row_that_kills_its_reader_is_set_aside_unread(score, undisturbed, models):
    rows, record = score(make_encoder=partial(encoder_beside_a_deadly_reader, models[1], '"prompt 3502"'))
    lost = {**undisturbed[3502], "prompt": None, "n": None, "tuco": None}
    assert rows[3502]["error"] == "the engine's process died twice on this row"
    assert {name: rows[3502][name] for name in ("id", "prompt", "n", "tuco")} == {
        name: lost[name] for name in ("id", "prompt", "n", "tuco")
    }
    assert rows[:3502] + rows[3503:] == undisturbed[:3502] + undisturbed[3503:]
    assert record["set_aside_rows"] == [3502]


@pytest.mark.slow
def test_what_dies_for_ever_ends_the_job(score, tmp_path):
    (tmp_path / "marks").mkdir()
    always = partial(DeadlyScorer, folder=tmp_path / "marks", kill_at=range(1, 100))
    with pytest.raises(
        EngineError, match=r"the process that was to score the rows from \d+ on died \d+ times"
    ):
        score(always)


class OneOfTwo(FakeScorer):
    """At the second place none starts, once the first one works."""

    def __init__(self, place, engines, *, folder):
        super().__init__()
        self._mark = folder / "working"
        if place:
            while not self._mark.exists():
                time.sleep(0.05)
            raise EngineError("no memory")

    def step(self):
        self._mark.touch()
        time.sleep(0.02)
        return super().step()


@pytest.mark.slow  # starts four processes, one after the other
def test_an_engine_that_cannot_start_any_more_is_given_up_where_others_go_on(
    score, undisturbed, tmp_path, capfd
):
    rows, record = score(partial(OneOfTwo, folder=tmp_path), engines=2)
    assert rows == undisturbed
    assert [engine["state"] for engine in record["engines"]] == ["ready", "gone"]
    assert (
        "engine 1 is given up: 4 engines in a row did not start (the last: no memory)"
        in capfd.readouterr().err
    )


def test_an_engine_that_does_not_start_says_why_and_nothing_is_removed(score, corpus, tmp_path):
    rows, _ = score(limit=10)
    with pytest.raises(EngineError, match=r"^the vLLM engine did not start: no memory$"):
        score(without_memory, overwrite=True)
    assert read(tmp_path / "out")[0] == rows


def test_an_input_that_changes_while_it_is_read_is_refused(score, corpus):
    """Seen by the worker: the driver has looked before."""

    class Touching(FakeScorer):
        def step(self):
            before = corpus.stat()
            os.utime(corpus, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
            return super().step()

    before = corpus.stat()
    try:
        with pytest.raises(InputError, match=r"x.jsonl changed while it was read"):
            score(Touching)
    finally:
        os.utime(corpus, ns=(before.st_atime_ns, before.st_mtime_ns))


def unpickled_as(store, *how):
    """The store, which other processes get by ``how``: a function and its arguments."""

    class Abroad(type(store)):
        def __reduce__(self):
            return how[0], how[1:]

    return Abroad(store.folder)


def test_a_folder_that_machines_do_not_share_is_refused_before_anything_is_scored(
    score, tmp_path, monkeypatch
):
    other = unpickled_as(running.store_at(tmp_path / "out"), LocalStore, tmp_path / "local")
    monkeypatch.setattr(running, "store_at", lambda out: other)
    with pytest.raises(InputError, match=r"is another place on .*: name a folder that all machines share"):
        score()
    assert not (tmp_path / "local").exists()


def test_a_worker_that_cannot_begin_is_heard_of(score, tmp_path, monkeypatch):
    """As with another version on its machine: its units would wait for ever."""
    other = unpickled_as(running.store_at(tmp_path / "out"), int, "no version of ours")
    monkeypatch.setattr(running, "store_at", lambda out: other)
    with pytest.raises(EngineError, match=r"a worker failed: .*no version of ours"):
        score()


def test_more_engines_than_there_is_room_for(score):
    with pytest.raises(InputError, match="50 engines do not fit on 2 CPUs"):
        score(engines=50)


def test_an_address_without_ray_is_refused():
    code = (
        "from tuco_vllm.corpus.cluster import Cluster\n"
        "from tuco_vllm.errors import InputError\n"
        "try:\n    with Cluster(address='127.0.0.1:1').joined(): pass\n"
        "except InputError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "cannot reach Ray at --ray-address 127.0.0.1:1" in done.stdout, done.stderr


def test_a_machine_too_busy_for_ray_is_told(monkeypatch):
    def late(*_, **__):
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(clusters.ray, "init", late)
    with pytest.raises(InputError, match=r"cannot start Ray .*timed out .*again when the machine has less"):
        Cluster()._connect("/nowhere")
