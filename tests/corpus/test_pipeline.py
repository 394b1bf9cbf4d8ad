"""The pipeline on Ray, with fake engines: same rows as without Ray, whatever dies on the way."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import fake_scorer
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deadly_scorer import DeadlyScorer, without_memory
from fake_scorer import FakeScorer, LocalPipeline, make_encoder

from tuco_vllm.config import resolve_pair
from tuco_vllm.corpus.chunks import Source
from tuco_vllm.corpus.cluster import Cluster
from tuco_vllm.corpus.columns import Columns, survey
from tuco_vllm.corpus.inputs import find_inputs
from tuco_vllm.corpus.pipeline import Pipeline
from tuco_vllm.corpus.run import ScoreJob, score_corpus
from tuco_vllm.errors import EngineError, InputError

pytestmark = pytest.mark.engine


ROWS = 24_000


@pytest.fixture(scope="module")
def cluster():
    """Ray on this machine, for all tests of the module; its workers find the fake engines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(fake_scorer.__file__).parent), prepend=os.pathsep)
        with Cluster(engines=2).joined():
            yield


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("in") / "x.jsonl"
    prompts = ["" if n % 7 == 0 else f"prompt {n}" for n in range(ROWS)]
    path.write_text("".join(json.dumps({"prompt": p, "n": n}) + "\n" for n, p in enumerate(prompts)))
    files = tuple(find_inputs([str(path)], out=path.parent / "out"))
    return Source(files, Columns(), survey(files, Columns()).extras)


@pytest.fixture(scope="module")
def undisturbed(source, models):
    job = ScoreJob((source.files[0].path,), out=None)
    with LocalPipeline(job, models[1]) as pipeline:
        return pa.concat_tables(chunk.table for chunk in pipeline.scored(source))


@pytest.fixture
def run(cluster, source, models):
    """Score the source; returns the rows as one table, the chunks and the engines' states."""

    def call(start_engine=FakeScorer, engines=1, source=source):
        with Pipeline(Cluster(engines), start_engine, partial(make_encoder, models[1])) as pipeline:
            chunks = list(pipeline.scored(source))
            return pa.concat_tables(chunk.table for chunk in chunks), chunks, pipeline.engine_states()

    return call


def token_ids(models, text):
    return make_encoder(models[1]).encode(text).token_ids


def test_the_rows_are_those_of_one_process_in_order(run, undisturbed, tmp_path):
    table, chunks, states = run(partial(DeadlyScorer, folder=tmp_path, together=2), engines=2)
    assert table.equals(undisturbed)
    assert {chunk.engine for chunk in chunks} == {0, 1}
    assert states == {0: "ready", 1: "ready"}
    assert all(chunk.ready_seconds >= chunk.busy_seconds > 0 for chunk in chunks)


def test_deaths_cost_no_row_and_double_none_and_what_causes_them_is_set_aside(
    run, undisturbed, models, tmp_path
):
    """Processes killed by hand, one row that its engine dies of and one that its process dies of."""
    poison, deadly = [token_ids(models, "prompt 1003")], [token_ids(models, "prompt 4502")]
    start = partial(
        DeadlyScorer, folder=tmp_path, poison=poison, deadly=deadly, kill_at=[50, 900], together=2
    )
    table, chunks, _ = run(start, engines=2)
    reasons = {
        1003: "the engine died twice on this row: boom",
        4502: "the engine's process died twice on this row",
    }
    assert_only_these_are_set_aside(table, undisturbed, reasons)
    marks = sorted(path.name.split("-")[0] for path in tmp_path.iterdir())
    assert marks.count("kill") == 2
    # Twice alone; before that, twice with its chunk, unless it was there that a process was killed by hand.
    assert 2 <= marks.count("deadly") <= 4
    assert marks.count("poison") >= 2
    assert marks.count("engine") > 4  # two processes to begin with, and others for those that died
    assert max(chunk.starts for chunk in chunks) > 1


def assert_only_these_are_set_aside(table, undisturbed, reasons):
    rows, expected = table.to_pylist(), undisturbed.to_pylist()
    assert len(rows) == len(expected)
    for n, row in enumerate(rows):
        if n in reasons:
            assert (row["error"], row["tuco"], row["n"], row["set_aside"]) == (reasons[n], None, n, True)
        else:
            assert row == expected[n]


@pytest.mark.slow
def test_what_dies_for_ever_ends_the_job(run, tmp_path):
    always = partial(DeadlyScorer, folder=tmp_path, kill_at=range(1, 100))
    with pytest.raises(
        EngineError, match=r"the process that was to score the rows from \d+ on died 1\d times"
    ):
        run(always)


def test_an_engine_that_does_not_start_says_why(run):
    with pytest.raises(EngineError, match=r"^the vLLM engine did not start: no memory$"):
        run(without_memory)


def test_an_input_that_changes_while_it_is_read_is_refused(run, source):
    path = Path(source.files[0].path)
    before = path.stat()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    try:
        with pytest.raises(InputError, match=r"x.jsonl changed while it was read"):
            run()
    finally:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_more_engines_than_there_is_room_for(run):
    with pytest.raises(InputError, match="50 engines do not fit on 4 CPUs"):
        run(engines=50)


def test_an_address_without_ray_is_refused():
    code = (
        "from tuco_vllm.corpus.cluster import Cluster\n"
        "from tuco_vllm.errors import InputError\n"
        "try:\n    with Cluster(address='127.0.0.1:1').joined(): pass\n"
        "except InputError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "cannot reach Ray at --ray-address 127.0.0.1:1" in done.stdout, done.stderr


def test_a_whole_job_on_ray(cluster, source, models, undisturbed, tmp_path):
    """The driver around it: the same files as from the pipeline of one process."""
    pair = resolve_pair(*models)

    def score(out, make):
        job = ScoreJob((source.files[0].path,), tmp_path / out, rows_per_file=8000)
        score_corpus(job, pair, lambda _: make(job))
        parts = sorted((tmp_path / out).glob("part-*"))
        return [pq.read_table(part) for part in parts], json.loads(
            (tmp_path / out / "_tuco/run.json").read_text()
        )

    encoder = partial(make_encoder, models[1])
    together = partial(DeadlyScorer, folder=tmp_path, together=2)
    parts, record = score("ray", lambda _: Pipeline(Cluster(2), together, encoder))
    expected, _ = score("here", lambda job: LocalPipeline(job, models[1]))
    assert [part.replace_schema_metadata() for part in parts] == [
        part.replace_schema_metadata() for part in expected
    ]
    assert sum(engine["rows"] for engine in record["engines"]) == ROWS
    assert [engine["state"] for engine in record["engines"]] == ["ready", "ready"]
    assert record["counts"]["errors"] == undisturbed.num_rows - undisturbed["error"].null_count
