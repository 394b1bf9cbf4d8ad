import json

import pytest
from fake_scorer import LocalWorkers, write_pair

from tuco_vllm.config import resolve_pair
from tuco_vllm.corpus import chunks
from tuco_vllm.corpus.job import ScoreJob
from tuco_vllm.corpus.run import score_corpus


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture
def score(models, tmp_path, monkeypatch):
    """Score a corpus into ``out`` of the test's folder, in chunks of 4 rows; returns the workers, if any.

    Options are ScoreJob's and, in ``engine``, FakeScorer's.
    """
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 4)
    pair = resolve_pair(*models)

    def call(*inputs, out="out", engine=None, **options):
        made = []

        job = ScoreJob(tuple(map(str, inputs)), str(tmp_path / out), **options)

        def open_workers(tokens):
            made.append(LocalWorkers(job, pair.ft.directory, **(engine or {})))
            made[-1].tokens = tokens
            return made[-1]

        try:
            score_corpus(job, pair, open_workers)
        finally:
            assert all(each.closed for each in made)
        return made[0] if made else None

    return call


@pytest.fixture
def corpus(tmp_path):
    """Two files of one name in two folders; every third row is bad."""
    for folder in ("a", "b"):
        rows = [{"prompt": f"{folder} {n}" if n % 3 else "", "key": "same", "n": n} for n in range(25)]
        path = tmp_path / "in" / folder / "x.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "in"
