"""A unit done twice, by whomever: one part, and the same counts."""

import json

import pyarrow.parquet as pq
import pytest
from fake_scorer import FakeScorer, make_encoder
from object_store import object_store  # noqa: F401  (a fixture)

from tuco_vllm.config import resolve_pair
from tuco_vllm.corpus.columns import Columns
from tuco_vllm.corpus.feeder import Feeder
from tuco_vllm.corpus.inputs import find_inputs
from tuco_vllm.corpus.plan import Plan, surveyed
from tuco_vllm.corpus.worker import CloseLook, EngineFacts, Work, Worker
from tuco_vllm.records import part_name
from tuco_vllm.store import store_at


@pytest.fixture(params=["local", "s3"])
def worker(request, models, tmp_path):
    """A worker of a job of one unit of five rows."""
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"prompt": f"p {n}"}) + "\n" for n in range(5)))
    files = find_inputs([str(tmp_path / "x.jsonl")], out=tmp_path / "out")
    content, surveys = surveyed(files, Columns())
    out = request.getfixturevalue("object_store") if request.param == "s3" else tmp_path / "out"
    engine = FakeScorer()
    pair = resolve_pair(*models)
    work = Work(store_at(out), "ab12", tuple(files), Columns(), content.extras, (pair.ft,), {})
    feeder = Feeder(lambda: engine)
    made = Worker(feeder, make_encoder(pair.ft.directory), EngineFacts.of(engine), work)
    made.unit = Plan.of(surveys, 100, 1 << 30).unit(0)
    yield made
    feeder.close()


def test_a_part_that_is_there_counts_as_done(worker, monkeypatch):
    """A process died behind it, the answer was lost, or a zombie wrote it."""
    done = worker.score(worker.unit)
    monkeypatch.setattr(type(worker.work.store), "delete", lambda *_: pytest.fail("deleted"))
    assert worker.score(worker.unit) == done
    assert (done.rows, done.errors) == (5, 0)


def test_a_torn_part_is_replaced(worker):
    name = part_name(0, "ab12")
    worker.work.store.create(name, b"")
    done = worker.score(worker.unit)
    assert worker.work.store.list()[name] == done.size


def test_a_close_look_tells_of_each_row_and_of_their_end(worker):
    told = []
    look = CloseLook(lambda row, read: told.append((row, read)), frozenset({1, 3}), frozenset({3}))
    done = worker.score(worker.unit, look)
    rows = [(0, False), (0, True), (1, False), (2, False), (2, True), (3, False), (4, False), (4, True)]
    assert told == [*rows, (None, True)]
    assert (done.errors, done.set_aside) == (2, (1, 3))
    part = worker.work.store.open(part_name(0, "ab12"))
    assert pq.read_table(part)["prompt"].to_pylist() == ["p 0", "p 1", "p 2", None, "p 4"], (
        "the fourth unread"
    )
