"""The page that people read, of records."""

import json

import pytest


@pytest.fixture(scope="module")
def table(paper):
    return paper("table")


def record(pair, part, verdict, value=0.7, **more):
    controls = [{"measure": "a control", "ours": [0.5, 0.4, 0.6, 8], "null": 0.5}]
    finding = {
        "claim": "the claim",
        "paper": "AUC 1",
        "measure": "AUC",
        "ours": [value, 0.6, 0.8, 9],
        "null": 0.5,
    }
    finding |= {"above": True, "verdict": verdict, "controls": controls}
    own = {"bench": "paper", "pair": pair, "part": part, "findings": [finding], "errors": 0, "seconds": 60}
    return {**own, "provenance": {"commit": "0123456789abcdef"}, **more}


def written(table, tmp_path, *records):
    file = tmp_path / "paper.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in records))
    page = tmp_path / "README.md"
    table.write(table.latest(file), page, {"big": "the big pair", "toy": "the toy"}, tmp_path)
    return page.read_text()


def test_the_last_record_of_a_part_and_pair_is_shown(table, tmp_path):
    text = written(
        *(table, tmp_path),
        record("big", "5.2", "same", 0.71),
        record("toy", "5.2", "opposite", 0.72),
        record("big", "5.2", "none seen", 0.73),
    )
    assert "0.730" in text
    assert "0.720" in text
    assert "0.710" not in text


@pytest.mark.parametrize("verdict", ["same", "opposite", "none seen", "cannot be said"])
def test_nulls_and_failures_stand_there_as_well(table, tmp_path, verdict):
    lines = written(table, tmp_path, record("big", "5.4", verdict)).split("\n")
    (line,) = [line for line in lines if line.startswith("| the claim")]
    assert verdict in line
    assert "a control: 0.500 [0.400, 0.600]" in line


def test_what_there_is_no_number_for_is_a_dash(table, tmp_path):
    one = record("big", "5.4", "cannot be said")
    one["findings"][0]["ours"] = [None, None, None, 0]
    assert "AUC: – |" in written(table, tmp_path, one)


def test_small_differences_keep_their_digits(table):
    assert table._estimate([0.001234, -0.0005, 0.003, 10]) == "0.00123 [-0.00050, 0.00300]"


def test_without_records_it_says_so(table, tmp_path):
    assert "no records yet" in written(table, tmp_path)


def test_refusals_against_alpha_stand_there(table, tmp_path):
    one = {
        "bench": "refusals_by_alpha",
        "rows": 9,
        "refused": {"harmful": {"0": [0.1, 0, 0.2, 9], "1": [1, 0.9, 1, 9]}},
    }
    text = written(table, tmp_path, one)
    assert "| harmful | 0.10 [0.00, 0.20] | 1.00 [0.90, 1.00] |" in text
