"""Two engines on two nodes of a Ray cluster joined by its address, with output in a directory and on S3."""

import json
import os
from functools import partial
from pathlib import Path

import fake_scorer
import pyarrow.parquet as pq
import pytest
import ray
from deadly_scorer import DeadlyScorer
from fake_scorer import LocalWorkers, make_encoder
from object_store import dataset, object_store  # noqa: F401  (a fixture)
from ray.cluster_utils import Cluster as RayCluster

from tuco_vllm.config import resolve_pair
from tuco_vllm.corpus.cluster import Cluster
from tuco_vllm.corpus.driver import Workers
from tuco_vllm.corpus.job import ScoreJob
from tuco_vllm.corpus.run import score_corpus
from tuco_vllm.errors import InputError

pytestmark = pytest.mark.engine


@pytest.fixture
def address(monkeypatch):
    """Of a cluster of two nodes, which are processes of this machine."""
    monkeypatch.setenv("PYTHONPATH", str(Path(fake_scorer.__file__).parent), prepend=os.pathsep)
    nodes = RayCluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 200 << 20})
    nodes.add_node(num_cpus=1, object_store_memory=200 << 20)
    yield nodes.address
    nodes.shutdown()


def test_two_engines_on_two_nodes(object_store, address, models, tmp_path):  # noqa: F811
    path, pair = tmp_path / "x.jsonl", resolve_pair(*models)
    path.write_text("".join(json.dumps({"prompt": f"prompt {n}", "n": n}) + "\n" for n in range(6_000)))

    def score(out, workers, engines):
        job = ScoreJob((str(path),), str(out), rows_per_file=500)
        score_corpus(job, pair, lambda _: workers(job), engines=engines)

    score(tmp_path / "here", lambda job: LocalWorkers(job, models[1]), 1)
    expected = pq.read_table(tmp_path / "here").to_pylist()
    for out, read in ((str(tmp_path / "out"), pq.read_table), (f"{object_store}/out", dataset)):
        marks = tmp_path / f"marks-{len(out)}"
        marks.mkdir()
        start = partial(DeadlyScorer, folder=marks, together=2)
        encoder = partial(make_encoder, models[1])
        with Cluster(2, address=address).joined():
            assert sum(node["Alive"] for node in ray.nodes()) == 2
            workers = Workers(Cluster(2, address=address), start, encoder)
            score(out, lambda job: workers, 2)  # noqa: B023
            assert len({worker.node for worker in workers._workers}) == 2
        assert read(out).to_pylist() == expected
        assert not ray.is_initialized()

    too_many = Workers(Cluster(3, address=address), start, encoder)
    with pytest.raises(InputError, match="3 engines do not fit on 2 CPUs"), too_many:
        pass
