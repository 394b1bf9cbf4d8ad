import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from tuco_vllm.analysis.tables import print_summary, summarise
from tuco_vllm.records import output_schema


def write(path, scores, errors=()):
    rows = [{"id": "s", "prompt_tokens": 3, "tuco": score} for score in scores]
    rows += [{"id": "e", "error": error} for error in errors]
    pq.write_table(pa.Table.from_pylist(rows, schema=output_schema()), path)


def test_quantiles_are_those_of_all_parts_together(tmp_path):
    scores = np.random.default_rng(0).random(2000)
    write(tmp_path / "part-00000.parquet", scores[:700])
    write(tmp_path / "part-00001.parquet", scores[700:])
    summary = summarise(tmp_path)
    expected = np.quantile(scores, [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1], method="inverted_cdf")
    assert list(summary.tuco) == ["min", "5%", "25%", "50%", "75%", "95%", "max"]
    assert list(summary.tuco.values()) == pytest.approx(expected, abs=1e-6)
    assert (summary.rows, summary.errors, summary.prompt_tokens) == (2000, 0, 6000)


@pytest.mark.parametrize("score", [0.0, 1.0, 0.5])
def test_one_score_is_all_its_quantiles(tmp_path, score):
    write(tmp_path / "part-00000.parquet", [score])
    assert set(summarise(tmp_path).tuco.values()) == {score}


def test_errors_are_grouped_whatever_their_numbers(tmp_path):
    errors = ["prompt has 7 tokens, the limit is 5", "prompt has 99 tokens, the limit is 5", "[red]empty"]
    write(tmp_path / "part-00000.parquet", [], errors)
    summary = summarise(tmp_path)
    assert summary.reasons == {"prompt has N tokens, the limit is N": 2, "[red]empty": 1}
    assert (summary.errors, summary.tuco) == (3, {})
    printed = io.StringIO()
    print_summary(tmp_path, Console(file=printed, width=100))
    assert "2 x" in printed.getvalue()
    assert "[red]empty" in printed.getvalue()


def test_a_run_without_parts_has_an_empty_summary(tmp_path):
    assert summarise(tmp_path).rows == 0
