"""Each row under several adapters: one job, a part for each adapter, and rows that say which."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fake_scorer import fake_answer, fake_score, make_encoder

from tuco_vllm.adapter import Adapter
from tuco_vllm.config import resolve_pair
from tuco_vllm.corpus.columns import Columns
from tuco_vllm.errors import EngineError, InputError
from tuco_vllm.records import TucoScore
from tuco_vllm.score_requests import Adapted


def read(out):
    return pq.read_table(out).to_pylist()


class Fake(Adapter):
    """Files are not looked at here."""

    @property
    def fingerprint(self):
        return self.name


@pytest.fixture
def others(models):
    ft = resolve_pair(*models).ft
    return tuple(replace(ft, name=name, adapter=Fake(name, Path(name), {})) for name in ("one", "two"))


def test_each_row_under_each_and_parts_in_order(score, corpus, tmp_path, others, models):
    score(corpus, other_fts=others, rows_per_file=20)
    rows, encode = read(tmp_path / "out"), make_encoder(models[1]).encode
    own = str(models[1])
    ids = [[f"{folder}/x.jsonl:{n}" for n in range(25)] for folder in "ab"]
    units = [ids[0][:20], ids[0][20:], ids[1][:20], ids[1][20:]]
    expected = [(each, ft) for unit in units for ft in (own, "one", "two") for each in unit]
    assert [(row["id"], row["ft"]) for row in rows] == expected
    for row in rows:
        if row["error"] is None:
            tokens, adapter = encode(row["prompt"]).token_ids, {ft.name: ft.adapter for ft in others}
            truth = fake_score(tokens)
            if row["ft"] != own:
                norms = fake_answer(Adapted(tokens, adapter[row["ft"]]))
                truth = TucoScore.from_norms(norms, len(tokens))
            assert row["tuco"] == truth.tuco
    record = json.loads((tmp_path / "out/_tuco/run.json").read_text())
    assert (record["counts"]["rows"], record["counts"]["rows_total"]) == (150, 150)
    prints = {
        pq.read_metadata(part).metadata[b"tuco.ft_fingerprint"] for part in (tmp_path / "out").glob("part-*")
    }
    assert len(prints) == 3
    names = {pq.read_metadata(part).metadata[b"tuco.ft"] for part in (tmp_path / "out").glob("part-*")}
    assert names == {own.encode(), b"one", b"two"}
    assert list(rows[0]).index("ft") == list(rows[0]).index("error") - 1


def test_resumed_and_others_are_another_job(score, corpus, tmp_path, others):
    score(corpus, other_fts=others, out="whole", rows_per_file=20)
    with pytest.raises(EngineError):
        score(corpus, other_fts=others, rows_per_file=20, engine={"dies_after": 40})
    assert 0 < len(read(tmp_path / "out")) < 150
    with pytest.raises(InputError, match="other_fts was"):
        score(corpus, other_fts=others[:1], rows_per_file=20)
    score(corpus, other_fts=others, rows_per_file=20)
    assert read(tmp_path / "out") == read(tmp_path / "whole")


def test_an_input_column_of_that_name_keeps_its_values(score, tmp_path, others):
    (tmp_path / "x.jsonl").write_text('{"prompt": "a", "ft": "mine", "input_ft": "too"}\n')
    score(tmp_path / "x.jsonl", other_fts=others)
    row = read(tmp_path / "out")[1]
    assert (row["ft"], row["input_input_ft"], row["input_ft"]) == ("one", "mine", "too")
    score(tmp_path / "x.jsonl", out="plain")
    assert read(tmp_path / "plain")[0]["ft"] == "mine"


def test_ids_of_the_users_own_do_not_repeat_for_being_scored_thrice(score, tmp_path, others):
    rows = [{"prompt": f"p {n}", "key": f"k{n % 9}"} for n in range(10)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    score(tmp_path / "x.jsonl", other_fts=others, columns=Columns(id="key"))
    record = json.loads((tmp_path / "out/_tuco/run.json").read_text())
    assert record["duplicate_ids"] == {"ids": 1, "rows": 2, "examples": [["k0", 2]]}
