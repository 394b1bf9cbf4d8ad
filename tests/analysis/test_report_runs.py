"""Several runs in one report, runs in an object store, and the files that a report writes."""

import os

import numpy as np
import pytest
from object_store import SECRET, object_store  # noqa: F401
from scipy import stats
from synthetic_run import METADATA, scored_rows, write_run

from tuco_vllm.analysis.report.sources import open_sources
from tuco_vllm.cli import main
from tuco_vllm.errors import InputError
from tuco_vllm.flagging import Bucket, Flags
from tuco_vllm.store import store_at


def scores(shift, n=200, seed=0):
    draw = np.random.default_rng(seed)
    base, noise = (
        draw.random(n) * 0.4 + 0.3,
        np.random.default_rng(seed + 1 + int(shift * 100)).normal(0, 0.02, n),
    )
    return (base + shift + noise).tolist()


def test_two_runs_are_paired_by_id(tmp_path, report):
    one, two = scores(0.0), scores(0.05)
    group = ["a", "b"] * 100
    first = write_run(tmp_path / "ft-1", scored_rows(one, group=group))
    order = np.random.default_rng(9).permutation(200)
    rows = [scored_rows(two, group=group)[place] for place in order][:180]
    second = write_run(tmp_path / "ft-2", rows, ft_fingerprint="g" * 64)
    written = report(first, second)
    [row] = written.table("paired")
    difference = (np.array(two) - np.array(one))[order[:180]]
    assert (row["run"], row["rows in both"]) == ("ft-2", "180")
    assert float(row["difference"]) == pytest.approx(difference.mean())
    low, high = stats.t.interval(0.95, 179, difference.mean(), stats.sem(difference))
    assert (float(row["difference_low"]), float(row["difference_high"])) == pytest.approx((low, high))
    rank = stats.spearmanr(np.array(one)[order[:180]], np.array(two)[order[:180]]).statistic
    assert float(row["Spearman"]) == pytest.approx(rank)
    by_group = written.rows("paired_by_group", "group")
    inside = order[:180] % 2 == 0
    assert float(by_group["a"]["difference"]) == pytest.approx(difference[inside].mean())
    assert "do not compare" not in written.page
    assert "Row by row, TuCo is higher in “ft-2” than in “ft-1”" in written.page


def test_ids_that_repeat_are_counted_and_not_paired(tmp_path, report):
    rows = scored_rows([0.1, "error", 0.3, 0.4], id=["x", "x", "y", "z"])
    others = scored_rows([0.5, 0.9, 0.6, "error"], id=["x", "y", "q", "z"])
    written = report(write_run(tmp_path / "one", rows), write_run(tmp_path / "two", others))
    [row] = written.table("repeated_ids")
    assert row == {"run": "one", "ids": "1", "rows": "2", "most frequent": "x", "times": "2"}
    [pair] = written.table("paired")
    assert (pair["rows in both"], float(pair["difference"])) == ("1", pytest.approx(0.6))


def test_runs_without_an_id_in_common_are_not_paired(tmp_path, report):
    other = scored_rows([0.3, 0.4], id=["x", "y"])
    written = report(write_run(tmp_path / "one", scored_rows([0.1, 0.2])), write_run(tmp_path / "two", other))
    assert "nothing can be paired" in written.page
    assert "paired" not in written.names


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("chat_template_sha256", "u" * 64, "differ in the chat template"),
        ("template_applied", "false", "differ in whether a template was applied"),
        ("dtype", "bfloat16", "differ in the dtype"),
        ("row_dtype", "bfloat16", "differ in the row dtype"),
        ("pt_fingerprint", "q" * 64, "differ in PT"),
    ],
)
def test_runs_that_do_not_compare_are_called_so(tmp_path, report, name, value, words):
    first = write_run(tmp_path / "one", scored_rows([0.3, 0.4]))
    second = write_run(tmp_path / "two", scored_rows([0.3, 0.4]), **{name: value})
    page = report(first, second).page
    assert words in page
    assert page.count("do not compare") == 1


def test_adapters_of_one_run_stand_side_by_side(tmp_path, report):
    one, two = scores(0.0, 50), scores(0.1, 50)
    rows = scored_rows(one, ft="/models/ada/pter-1") + scored_rows(two, ft="/models/ada/pter-2")
    written = report(write_run(tmp_path / "run", rows))
    [row] = written.table("paired")
    assert row["run"] == "ada/pter-2"
    assert float(row["difference"]) == pytest.approx(np.mean(two) - np.mean(one))
    assert "repeated_ids" not in written.names
    assert len(written.table("runs")) == 2


def test_small_scores_in_16_bits_are_called_small(tmp_path, report):
    sixteen = {"dtype": "bfloat16", "row_dtype": "bfloat16"}
    page = report(write_run(tmp_path / "run", scored_rows([0.004] * 9), **sixteen)).page
    assert "tuco doctor measures it for this pair" in page
    page = report(write_run(tmp_path / "other", scored_rows([0.4] * 9), **sixteen)).page
    assert "tuco doctor measures it" not in page


def test_an_unfinished_run_is_called_so(tmp_path, report):
    written = report(write_run(tmp_path / "run", scored_rows([0.3, 0.4]), finished=False))
    assert "run is unfinished: 2 of 7 rows are there" in written.page


def test_what_may_be_a_key_in_a_command_is_not_shown(tmp_path, report):
    command = "tuco score s3://user:pass@bucket/x https://a.b/c?X-Amz-Signature=feed&y=1 --pt base"
    written = report(write_run(tmp_path / "run", scored_rows([0.3, 0.4]), command=command))
    texts = [written.page, *(path.read_text() for path in tmp_path.glob("report-tables/*"))]
    assert any("--pt base" in text for text in texts)
    assert not any(word in text for text in texts for word in ("pass@", "feed"))


def test_a_run_in_an_object_store(tmp_path, report, object_store):  # noqa: F811
    local = write_run(tmp_path / "run", scored_rows(scores(0.0), group=["a", "b"] * 100), parts=3)
    store = store_at(object_store)
    for path in local.rglob("*"):
        if path.is_file():
            store.create(str(path.relative_to(local)), path.read_bytes())
    here, there = report(local), report(object_store, out="remote.html")
    for name in here.names - {"provenance", "rows", "outliers"}:
        assert there.table(name) == here.table(name)
    assert "unfinished" not in there.page
    texts = [there.page, there.printed, *(p.read_text() for p in tmp_path.glob("remote-tables/*"))]
    assert not any(SECRET in text for text in texts)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "holds no scored rows"),
        (lambda path: None, "holds no scored rows"),
        (lambda path: path.write_text("x"), "is a file: name the directory"),
        (lambda path: (path.mkdir(), (path / "part-00000-x.parquet").write_text("torn")), "cannot read"),
        (lambda path: write_run(path, scored_rows([0.1])) and None, None),
    ],
)
def test_a_place_without_a_run_is_one_line(tmp_path, capsys, monkeypatch, make, message):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "run")
    code = main(["report", str(tmp_path / "run")])
    error = capsys.readouterr().err
    if message is None:
        assert (code, error) == (0, "")
        assert (tmp_path / "tuco-report.html").is_file()
    else:
        assert code == 2
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "tuco-report.html").exists()


def test_a_run_named_twice_is_refused(tmp_path):
    run = str(write_run(tmp_path / "run", scored_rows([0.1])))
    with pytest.raises(InputError, match="named twice"):
        open_sources([run, run])


def test_runs_are_told_apart_by_as_much_of_their_place_as_needed(tmp_path):
    places = [write_run(tmp_path / name / "scores", scored_rows([0.1])) for name in ("one", "two")]
    assert [source.label for source in open_sources(list(map(str, places)))] == ["one/scores", "two/scores"]


def test_an_earlier_report_is_replaced_and_nothing_else(tmp_path, report):
    run = write_run(tmp_path / "run", scored_rows([0.1, 0.2], group=["a", "b"], shots=[1, 2]))
    tables = tmp_path / "report-tables"
    assert "by" in report(run, by="shots").names
    (tables / "mine.csv").write_text("1")
    assert "by" not in report(run).names  # what is no longer true does not stay
    assert (tables / "mine.csv").read_text() == "1"
    (tmp_path / "report.html").write_text("<p>somebody's page</p>")
    with pytest.raises(InputError, match="is no report of ours"):
        report(run)
    assert (tmp_path / "report.html").read_text() == "<p>somebody's page</p>"
    (tmp_path / "other-tables").mkdir()
    (tmp_path / "other-tables/auc.csv").write_text("mine")
    with pytest.raises(InputError, match="is no report's"):
        report(run, out="other.html")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a pipe or a device"):
        report(run, out="pipe")
    with pytest.raises(InputError, match="File name too long: name another file"):
        report(run, out="x" * 300)
    with pytest.raises(InputError, match="there is no folder"):
        report(run, out="nowhere/report.html")
    with pytest.raises(InputError, match="is a folder"):
        report(run, out="run")


def flags(**fields):
    given = {"pt_fingerprint": METADATA["pt_fingerprint"], "ft_fingerprint": METADATA["ft_fingerprint"]}
    given |= {"path": "f", "ft": "chat", "dtype": "float32", "row_dtype": "float32", "column": "tuco"}
    given |= {"direction": "below", "fpr": 0.05}
    given["templates"] = {METADATA["chat_template_sha256"]: (Bucket(0, 50, 0.3), Bucket(51, 100, 0.5))}
    return Flags(**(given | fields))


@pytest.mark.parametrize("direction", ["below", "above"])
def test_the_share_that_a_calibration_flags(tmp_path, report, direction):
    draw = np.random.default_rng(0)
    tuco, tokens = draw.random(300).tolist(), draw.integers(1, 150, 300).tolist()
    rows = scored_rows(tuco, prompt_tokens=tokens, group=["a", "b", "c"] * 100)
    asked = flags(direction=direction)
    found = report(write_run(tmp_path / "run", rows), flags=asked).rows("flagged", "group")
    for place, name in enumerate("abc"):
        said = [
            asked.flagged(METADATA["chat_template_sha256"], tokens[n], tuco[n]) for n in range(place, 300, 3)
        ]
        judged = [each for each in said if each is not None]
        row = found[name]
        assert (int(row["n"]), int(row["judged"]), int(row["flagged"])) == (100, len(judged), sum(judged))
        assert 0 < len(judged) < 100
        assert float(row["share"]) == pytest.approx(sum(judged) / len(judged))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ft_fingerprint": "other"}, "no part of the runs is of the calibration's models"),
        ({"row_dtype": "bfloat16"}, "no part of the runs is of the calibration's models"),
        ({"templates": {None: (Bucket(0, 9, 0.5),)}}, "no part of the runs is of the calibration's models"),
        ({"column": "response_tuco"}, "of the column response_tuco, which no scored row has"),
        ({"column": "1; DROP TABLE rows"}, "which no scored row has"),
    ],
)
def test_a_calibration_of_something_else_flags_nothing(tmp_path, report, fields, message):
    written = report(write_run(tmp_path / "run", scored_rows([0.1, 0.2])), flags=flags(**fields))
    assert message in written.left_out().replace("&#39;", "'")
    assert "flagged" not in written.names


def test_parts_with_prompts_of_two_forms_have_no_threshold(tmp_path, report):
    rows = scored_rows([0.1, 0.2, "error", 0.3], prompt_tokens=20)
    whole = write_run(tmp_path / "whole", rows, parts=1, templated_rows="3")
    assert report(whole, flags=flags()).table("flagged")[0]["judged"] == "3"
    mixed = write_run(tmp_path / "mixed", rows, parts=1, templated_rows="2")
    assert "no part of the runs" in report(mixed, flags=flags()).left_out()
