"""Two engines on two nodes of a Ray cluster that is joined by its address: the rows of one engine here."""

import json
import os
from functools import partial
from pathlib import Path

import fake_scorer
import pyarrow as pa
import pytest
import ray
from deadly_scorer import DeadlyScorer
from fake_scorer import LocalPipeline, make_encoder
from ray.cluster_utils import Cluster as RayCluster

from tuco_vllm.corpus.chunks import Source
from tuco_vllm.corpus.cluster import Cluster
from tuco_vllm.corpus.columns import Columns, survey
from tuco_vllm.corpus.inputs import find_inputs
from tuco_vllm.corpus.pipeline import Pipeline
from tuco_vllm.corpus.run import ScoreJob
from tuco_vllm.errors import InputError

pytestmark = pytest.mark.engine


@pytest.fixture
def address(monkeypatch):
    """Of a cluster of two nodes, which are processes of this machine."""
    monkeypatch.setenv("PYTHONPATH", str(Path(fake_scorer.__file__).parent), prepend=os.pathsep)
    nodes = RayCluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 200 << 20})
    nodes.add_node(num_cpus=2, object_store_memory=200 << 20)
    yield nodes.address
    nodes.shutdown()


def test_two_engines_on_two_nodes(address, models, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"prompt {n}", "n": n}) + "\n" for n in range(24_000)))
    source = Source(
        tuple(find_inputs([str(path)], out=tmp_path / "out")),
        Columns(),
        survey(find_inputs([str(path)], out=tmp_path / "out"), Columns()).extras,
    )
    with LocalPipeline(ScoreJob((str(path),), tmp_path / "out"), models[1]) as here:
        expected = pa.concat_tables(chunk.table for chunk in here.scored(source))

    start = partial(DeadlyScorer, folder=tmp_path, together=2)
    encoder = partial(make_encoder, models[1])
    with Pipeline(Cluster(2, address=address), start, encoder) as pipeline:
        assert sum(node["Alive"] for node in ray.nodes()) == 2
        chunks = list(pipeline.scored(source))
        assert {chunk.engine for chunk in chunks} == {0, 1}
        assert set(ray.get(pipeline._board.nodes.remote())) == {node["NodeID"] for node in ray.nodes()}
    assert pa.concat_tables(chunk.table for chunk in chunks).equals(expected)
    assert not ray.is_initialized()

    too_many = Pipeline(Cluster(3, address=address), start, encoder)
    with pytest.raises(InputError, match="3 engines do not fit on 4 CPUs"), too_many:
        pass
