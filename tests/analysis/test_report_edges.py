"""Runs that are empty, small, old or hostile: a report says what is missing and shows what is there."""

import csv
import math
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_run import first_schema, scored_rows, write_run

from tuco_vllm.analysis.report.data import MOST_CELLS
from tuco_vllm.analysis.report.document import shown, visible
from tuco_vllm.analysis.statistics import Estimate
from tuco_vllm.errors import InputError

HOSTILE = [
    "<script>alert(1)</script>",
    "</svg></style><img src=x onerror=alert(1)>",
    "$\\frac{$",
    "\"quoted\" 'names' & more; --",
    "line\nbreak\tand \x1b[31mred\x1b[0m \x00 \u202eesrever",
    "_begins with one",
    "日本語 تجربة",
    "--><!-- {{ 7 * 7 }} {% raw %}",
    "a, b; c | d",
    "%s {x} {0}",
]
SVG = {"svg", "g", "path", "defs", "clippath", "rect", "use", "text", "tspan"}
HTML = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "nav", "section", "div", "p", "ul"),
    *("li", "a", "h1", "h2", "figure", "figcaption", "table", "caption", "thead", "tbody", "tr", "th", "td"),
}


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.texts, self.ids = set(), [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_data(self, text):
        self.texts.append(text)


def parsed(page):
    tags = Tags()
    tags.feed(page)
    return tags


def expect_inert(page):
    """No tag but ours, no script, nothing fetched, nothing twice under one id."""
    tags = parsed(page)
    assert tags.tags <= SVG | HTML
    for tag, name, value in tags.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name != "src"
        if name in ("href", "xlink:href"):
            assert value.startswith("#")
            assert value[1:] in tags.ids
        assert "http" not in value, (tag, name, value)
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert len(tags.ids) == len(set(tags.ids))
    assert "\x1b" not in page
    assert "\x00" not in page
    return tags


def test_what_strangers_wrote_is_text_and_nothing_else(tmp_path, report):
    names = [HOSTILE[number % len(HOSTILE)] for number in range(200)]
    rows = scored_rows(np.random.default_rng(0).random(200).tolist(), group=names)
    for row, name in zip(rows, reversed(names), strict=True):
        row |= {"id": f"{name}{row['id']}", "prompt": name * 3}
    rows += scored_rows(HOSTILE, group="errors")
    run = write_run(tmp_path / "<b>run & $x$", rows, command="tuco score '<script>' \x1b[2J")
    written = report(run, drawn=True)
    tags = expect_inert(written.page)
    text = "".join(tags.texts)
    assert "<script>alert(1)</script>" in text
    assert "\\x1b[31mred" in text
    assert "\\u202eesrever" in text
    assert "{{ 7 * 7 }}" in text
    assert "\x1b" not in written.printed
    assert "\u202e" not in written.printed
    assert set(written.rows("distribution", "group")) == set(HOSTILE)  # a CSV is for programs: as they are
    shown_names = [t for t in HOSTILE if visible(t)[:20] in text.replace("\u200a", "")]
    assert shown_names == HOSTILE


@pytest.mark.parametrize("kind", ["group", "by"])
def test_a_column_may_have_any_name(tmp_path, report, kind):
    column = HOSTILE[1] + "'\"; DROP TABLE rows; --"
    rows = scored_rows([0.1, 0.2, 0.3, 0.4], **{column: [1, 2, 1, 2]})
    written = report(write_run(tmp_path / "run", rows), drawn=True, **{kind: column})
    expect_inert(written.page)
    table = "distribution" if kind == "group" else "by"
    assert len(written.table(table)) == 2


def test_a_single_row(tmp_path, report):
    written = report(write_run(tmp_path / "run", scored_rows([0.25], group="one"), parts=1), drawn=True)
    [row] = written.table("distribution")
    assert (row["n"], row["mean"], row["sd"], row["50%"]) == ("1", "0.25", "", "0.25")
    assert "fewer than two groups" in written.left_out()
    assert not re.search(r"\bnan\b", written.page, re.IGNORECASE)


def test_a_single_row_of_each_of_two_groups(tmp_path, report):
    rows = scored_rows([0.25, 0.5], group=["one", "two"], prompt_tokens=7)
    written = report(write_run(tmp_path / "run", rows))
    assert written.rows("auc", "group")["two"]["AUC"] == "1"
    assert "does not tell any group" in written.page
    assert "all prompts have 7 tokens" in written.left_out()


def test_constant_scores(tmp_path, report):
    rows = scored_rows([0.5] * 100, group=["one", "two"] * 50)
    written = report(write_run(tmp_path / "run", rows))
    row = written.rows("auc", "group")["two"]
    assert (row["AUC"], row["TuCo is"], row["TPR"]) == ("0.5", "equal", "0")
    assert written.rows("distribution", "group")["one"]["sd"] == "0"
    assert "does not tell any group" in written.page


def test_rows_without_a_finite_score_are_counted_apart_and_in_no_figure(tmp_path, report):
    rows = scored_rows([0.2, 0.4, math.nan, math.inf, -math.inf, "too long: 7 tokens", 0.6], group="g")
    rows[5]["tuco"] = 0.9  # an error's numbers are no score
    written = report(write_run(tmp_path / "run", rows))
    [counted] = written.table("rows")
    assert [counted[name] for name in ("rows", "scored", "errors", "no finite score")] == ["7", "3", "1", "3"]
    [row] = written.table("distribution")
    assert (row["n"], row["min"], row["max"]) == ("3", "0.2", "0.6")
    assert float(row["mean"]) == pytest.approx(0.4)
    assert written.table("errors") == [{"run": "run", "reason": "too long: N tokens", "rows": "1"}]
    layers = written.rows("layers", "layer")
    assert layers["4"]["n"] == "3"
    assert float(layers["4"]["beta"]) == pytest.approx(0.4, rel=1e-6)


def test_nothing_but_errors(tmp_path, report):
    written = report(write_run(tmp_path / "run", scored_rows(["empty"] * 5, group="g")))
    assert "No row has a score" in written.page
    assert written.table("errors")[0]["rows"] == "5"
    assert written.left_out().count("no row was scored") >= 2
    expect_inert(written.page)


def test_a_finished_run_of_no_rows(tmp_path, report):
    written = report(write_run(tmp_path / "run", [], parts=1))
    assert "No row has a score" in written.page


def test_a_run_of_schema_1_has_what_it_has(tmp_path, report):
    rows = scored_rows([0.1, 0.2, 0.3], group="g")
    run = write_run(tmp_path / "run", rows, schema=first_schema(), parts=1)
    old = pq.read_table(run / "part-00000000-job.parquet")
    keep = {k: v for k, v in old.schema.metadata.items() if k not in (b"tuco.row_dtype", b"tuco.version")}
    wanted = [name for name in old.column_names if name not in ("tuco_l2", "path_tuco", "cosine", "cosines")]
    pq.write_table(old.select(wanted).replace_schema_metadata(keep), run / "part-00000000-job.parquet")
    written = report(run)
    assert "Left out, for the runs do not have them: cosines." in written.page
    assert "row dtype: the runs have no such metadata" in written.page
    assert float(written.table("distribution")[0]["mean"]) == pytest.approx(0.2)
    assert "tuco_l2" not in written.table("measures")[0]
    assert "beta" in written.table("layers")[0]


def test_without_layers_and_texts_the_rest_is_there(tmp_path, report):
    run = tmp_path / "run"
    run.mkdir()
    columns = {"id": ["a", "b"], "prompt_tokens": [3, 4], "tuco": [0.1, 0.2], "error": [None, None]}
    schema = pa.schema(
        [("id", "string"), ("prompt_tokens", "int32"), ("tuco", "double"), ("error", "string")]
    )
    pq.write_table(pa.table(columns, schema), run / "part-00000-x.parquet")
    written = report(run)
    assert "the runs hold no lists of layers" in written.left_out()
    assert "The runs hold no texts of prompts" in written.page
    assert "unfinished: how many rows are to come is not known" in written.page


def test_the_inputs_own_columns_are_not_taken_for_ours(tmp_path, report):
    """An input's column may have the name of one that was not asked for."""
    rows = scored_rows([0.1, 0.2, 0.3], ft=["x", "y", "z"], output_co=[9.0, 9.0, 9.0])
    schema = first_schema()
    written = report(write_run(tmp_path / "run", rows, schema=schema))
    assert "OutputCo" in written.left_out()
    assert "there is one run" in written.left_out()


def test_of_many_groups_the_largest_are_shown_and_all_are_in_the_table(tmp_path, report):
    group = [f"g{min(number % 200, number % 211)}" for number in range(3000)]
    rows = scored_rows(np.random.default_rng(0).random(3000).tolist(), layers=2, group=group)
    written = report(write_run(tmp_path / "run", rows))
    assert len(written.table("distribution")) == 200
    assert len(written.table("auc")) == 19
    assert "180 others are in the CSV table only" in written.page
    assert written.page.count("<svg") < 12
    assert "180 more rows are in distribution.csv" in written.page


def test_a_column_with_a_value_a_row_is_no_group(tmp_path, report):
    rows = scored_rows([0.5] * (MOST_CELLS + 5), layers=1)
    run = write_run(tmp_path / "run", rows, parts=1)
    with pytest.raises(InputError, match=r"--group id makes more than 1,000 groups"):
        report(run, group="id")


def test_a_long_groups_name_does_not_drown_a_message(tmp_path, report):
    run = write_run(tmp_path / "run", scored_rows([0.1, 0.2], group=["a" * 3000, "b"]))
    with pytest.raises(InputError, match=r"there are a+…, b$") as caught:
        report(run, against="c")
    assert len(str(caught.value)) < 200


def test_groups_of_any_type(tmp_path, report):
    rows = scored_rows([0.1, 0.2, 0.3, 0.4], group=[[1, 2], None, [1, 2], []])
    found = report(write_run(tmp_path / "run", rows, parts=1)).rows("distribution", "group")
    assert {name: row["n"] for name, row in found.items()} == {"[1, 2]": "2", "(none)": "1", "[]": "1"}


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"group": "nope"}, r"--group nope: there is no such column; there are id, prompt, "),
        ({"by": "nope"}, r"--by nope: there is no such column"),
        ({"by": "prompt"}, r"--by prompt holds what is no number"),
        ({"against": "nope"}, r"--against nope: there is no such group; there are one, two"),
    ],
)
def test_what_is_not_there_is_refused(tmp_path, report, wishes, message):
    run = write_run(tmp_path / "run", scored_rows([0.1, 0.2], group=["one", "two"]))
    with pytest.raises(InputError, match=message):
        report(run, **wishes)
    assert not (tmp_path / "report.html").exists()


def test_texts_can_be_left_out(tmp_path, report):
    rows = scored_rows([0.1, 0.2, "the messages are not JSON: SECRET 1"], prompt="SECRET")
    written = report(write_run(tmp_path / "run", rows), texts=False)
    files = [path.read_text() for path in tmp_path.glob("report*/*")] + [written.page, written.printed]
    assert not any("SECRET" in text for text in files)
    assert written.table("errors")[0]["reason"] == "the messages are not JSON"


def test_a_csv_holds_every_digit_that_is_known(tmp_path, report):
    report(write_run(tmp_path / "run", scored_rows([0.123456789, 0.5])))
    with (tmp_path / "report-tables/distribution.csv").open() as file:
        [row] = csv.DictReader(file)
    assert row["min"] == "0.123456789"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.25, "0.250"),
        (0.0062345, "0.00623"),
        (12345.6, "12,346"),
        (1234567, "1,234,567"),
        (math.nan, "–"),
        (None, "–"),
        (0.0, "0"),
        (Estimate(0.0062, 0.0061, 0.0063, 9), "0.0062 [0.0061, 0.0063]"),
        (Estimate(0.98, 0.95, 1.0, 9), "0.980 [0.950, 1.000]"),
        (Estimate(0.5, math.nan, math.nan, 1), "0.500"),
        ("a\x07b", "a\\x07b"),
    ],
)
def test_numbers_are_shown_with_the_digits_that_they_have(value, text):
    assert shown(value) == text
