"""`tuco calibrate`: what it reads, what it writes, and what it refuses."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from analysis.runs import write_part

from tuco_vllm import cli
from tuco_vllm.analysis.calibration_file import save
from tuco_vllm.errors import InputError
from tuco_vllm.flagging import Flags


@pytest.fixture
def tuco(tmp_path, monkeypatch, capsys):
    """Run ``tuco calibrate`` beside the runs; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, fpr=0.05, out="out.json"):
        code = cli.main(["calibrate", *arguments, f"--fpr={fpr}", f"--out={out}"])
        return code, *capsys.readouterr()

    return call


def refused(answer):
    code, out, err = answer
    assert (code, out) == (2, "")
    [line] = err.splitlines()
    return line.removeprefix("tuco: error: ")


def draw(n, centre=0.5, seed=0):
    return np.random.default_rng(seed).normal(centre, 0.05, n)


def run(folder, n=200, **more):
    columns = {"tuco": draw(n), "kind": ["clean"] * (n - 60) + ["attack"] * 40 + ["suffix"] * 20}
    return write_part(folder, **{**columns, **more})


def test_what_is_written_can_be_read_and_says_where_it_is_from(tuco, tmp_path):
    run(tmp_path / "a")
    code, out, err = tuco("a", "--clean=kind=clean", "--attack=kind=attack", "--control=kind=suffix")
    assert (code, err) == (0, "")
    assert "chats (template cccccccccccc): tuco below the threshold, at most 0.05 of clean" in " ".join(
        out.split()
    )
    assert "attacks kind=attack: 40 rows" in out
    assert "control kind=suffix: 20 rows" in out
    written = json.loads((tmp_path / "out.json").read_text())
    assert (written["format"], written["version"]) == ("tuco calibration", 1)
    assert written["pair"]["ft"] == {"name": "org/chat", "fingerprint": "f" * 64}
    assert (written["dtype"], written["row_dtype"]) == ("bfloat16", "float32")
    assert written["provenance"]["command"].startswith("tuco calibrate a --clean=kind=clean")
    assert written["provenance"]["inputs"] == [str(tmp_path / "a")]
    [form] = written["templates"]
    [bucket] = form["buckets"]
    assert (bucket["rows"], bucket["flagged"], bucket["tokens"]) == (140, 6, [10, 10])
    flags = Flags.read(tmp_path / "out.json")
    assert flags.threshold("c" * 64, 10) == bucket["threshold"]
    clean = draw(200)[:140]
    assert sum(flags.flagged("c" * 64, 10, value) for value in clean) == 6
    assert sorted(tmp_path.iterdir()) == [tmp_path / "a", tmp_path / "out.json"]


def test_all_that_is_neither_attack_nor_control_is_clean(tuco, tmp_path):
    run(tmp_path / "a")
    tuco("a", "--attack=kind=attack", "--control=kind=suffix")
    first = json.loads((tmp_path / "out.json").read_text())["templates"]
    tuco("a", "--clean=kind=clean", "--attack=kind=attack", "--control=kind=suffix")
    assert json.loads((tmp_path / "out.json").read_text())["templates"] == first
    tuco("a")
    assert json.loads((tmp_path / "out.json").read_text())["templates"][0]["buckets"][0]["rows"] == 200


def test_labels_of_any_type_in_any_of_the_runs(tuco, tmp_path):
    n = 100
    run(tmp_path / "a", n, kind=["a=b c"] * n, good=[True] * n, level=[1] * n, share=[0.5] * n)
    write_part(tmp_path / "b", tuco=draw(n), kind=["x", None] * 50, level=[2] * n)
    write_part(tmp_path / "c", tuco=draw(n))
    for given, rows in (
        (["--clean=kind=a=b c"], 100),
        (["--clean=good=TRUE"], 100),
        (["--clean=level=1", "--clean=level=2"], 200),
        (["--clean=level=2", "--clean=kind=x"], 50),
        (["--clean=share=0.5"], 100),
    ):
        assert tuco("a", "b", "c", *given)[0] == 0
        buckets = json.loads((tmp_path / "out.json").read_text())["templates"][0]["buckets"]
        assert sum(bucket["rows"] for bucket in buckets) == rows
    assert "no column 'nope' (--clean nope=1): no run has it" in refused(tuco("a", "b", "--clean=nope=1"))
    assert "no scored row has kind=z (--clean): kind has None, a=b c, x" in refused(
        tuco("a", "b", "--clean=kind=z")
    )
    assert "column 'level' holds int64, not z" in refused(tuco("a", "--clean=level=z"))
    assert "column 'level' holds int64" in refused(tuco("a", f"--clean=level={10**30}"))
    assert "column 'good' holds bool" in refused(tuco("a", "--clean=good=yes"))
    write_part(tmp_path / "d", tuco=draw(n), half=pa.array(np.ones(n, np.float16)))
    assert "column 'half' holds halffloat, not 1" in refused(tuco("d", "--clean=half=1"))
    both = refused(tuco("a", "--clean=good=true", "--attack=level=1"))
    assert "100 rows are both --clean good=true and --attack level=1" in both


def test_rows_without_a_score_are_left_out_and_counted(tuco, tmp_path):
    scores = draw(100)
    scores[:3] = [np.nan, np.inf, -np.inf]
    write_part(tmp_path / "a", tuco=scores, error=[None] * 99 + ["broken"])
    code, _, err = tuco("a")
    assert (code, err) == (0, "tuco: 4 rows have no tuco and are left out\n")
    assert json.loads((tmp_path / "out.json").read_text())["templates"][0]["buckets"][0]["rows"] == 96
    write_part(tmp_path / "a", tuco=[None] * 5, error=["broken"] * 5)
    assert "no scored row to calibrate with" in refused(tuco("a"))
    write_part(tmp_path / "a", tuco=[])
    assert "no scored row to calibrate with" in refused(tuco("a"))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"ft_fingerprint": "x"},
            "FT is org/chat in .* which is another model: calibrate them apart, by --ft NAME",
        ),
        (
            {"pt_fingerprint": "x", "pt": "y"},
            "PT is org/base in .*/a/.* and y in .*/b/.*, which is another model",
        ),
        ({"dtype": "float32"}, "scored in bfloat16 with rows in float32, .* in float32 with rows in float32"),
        ({"row_dtype": None}, "in bfloat16 with rows in bfloat16: calibrate them apart"),
        ({"templated_rows": "7", "rows": "200", "errors": "0"}, "a chat template and prompts without"),
        ({"pt": None}, "is no part of a tuco score: it does not say its tuco.pt"),
        ({"templated_rows": "x"}, r"/b/part.* is no part of a tuco score: its tuco.templated_rows is .x."),
    ],
)
def test_what_cannot_be_put_together_is_named(tuco, tmp_path, said, message):
    run(tmp_path / "a")
    run(tmp_path / "b", said=said)
    line = refused(tuco("a", "b"))
    assert re.search(message, line), line
    if "ft_fingerprint" in said:
        assert tuco("a", "b", "--clean=kind=clean", "--ft=org/chat")[0] == 2  # both have that name
        run(tmp_path / "b", said={**said, "ft": "org/other"})
        assert tuco("a", "b", "--ft=org/other")[0] == 0
        assert "no rows were scored under --ft z: there are org/chat, org/other" in refused(
            tuco("a", "b", "--ft=z")
        )


def test_a_run_of_an_earlier_version_has_its_dtype_for_rows(tuco, tmp_path):
    run(tmp_path / "a", said={"row_dtype": None, "schema_version": "1"})
    assert tuco("a")[0] == 0
    assert Flags.read(tmp_path / "out.json").row_dtype == "bfloat16"


def test_what_is_no_run_is_refused(tuco, tmp_path):
    assert "holds no scores: name the --out of a tuco score" in refused(tuco("nowhere"))
    path = run(tmp_path / "a")
    path.write_bytes(path.read_bytes()[:-20])
    assert "cannot read" in refused(tuco("a"))
    pq.write_table(pa.table({"tuco": [1.0]}), path)
    assert "is no part of a tuco score" in refused(tuco("a"))
    table = pq.read_table(run(tmp_path / "a"))
    pq.write_table(table.append_column("kind", table["kind"]), path)
    assert "has two columns 'kind'" in refused(tuco("a", "--clean=kind=clean"))
    run(tmp_path / "a")
    for column in ("response_tuco", "nope", "kind", "prompt_tokens"):
        line = refused(tuco("a", f"--column={column}"))
        assert f"no column {column!r} of scores: there are tuco, preco" in line


def test_a_run_that_goes_on_is_used_with_a_warning(tuco, tmp_path):
    run(tmp_path / "a")
    (tmp_path / "a/_SUCCESS").unlink()
    code, _, err = tuco("a")
    assert (code, err) == (0, f"tuco: warning: {tmp_path}/a is not finished: its rows so far are used\n")


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"format": "other"}', "\xff", "[" * 100_000])
def test_a_file_of_anothers_stays(tuco, tmp_path, content):
    run(tmp_path / "a")
    (tmp_path / "out.json").write_text(content)
    assert "is there and is no calibration: name another file" in refused(tuco("a"))
    assert (tmp_path / "out.json").read_text() == content
    assert "is no calibration" in refused(tuco("nowhere"))  # before anything is read
    with pytest.raises(InputError, match="is no calibration"):  # nor one that has come meanwhile
        save({}, tmp_path / "out.json")
    assert tuco("a", out="new.json")[0] == tuco("a", out="new.json")[0] == 0
    assert "there is no directory" in refused(tuco("a", out="no/where.json"))
    assert "is there and is no calibration" in refused(tuco("a", out="a"))


@pytest.mark.parametrize("fpr", ["0", "-1", "nan", "0.6", "inf", "x", "1e-400"])
def test_a_rate_is_a_share(tuco, fpr):
    assert "is not a share above 0 and up to 0.5" in refused(tuco("a", fpr=fpr))


def test_names_of_strangers_do_nothing_to_a_terminal(tuco, tmp_path):
    odd = "\x1b[31m[bold]$(x)`'\"<script>\n é"
    write_part(tmp_path / "a", **{"tuco": draw(200), odd: ["u\x1b[0m"] * 100 + ["v"] * 100})
    code, out, _ = tuco("a", f"--clean={odd}=v", f"--control={odd}=u\x1b[0m")
    assert code == 0
    assert "\x1b" not in out
    assert "[bold]$(x)`'\"<script>" in " ".join(out.split())
    assert (
        f"{odd}=u\x1b[0m"
        == json.loads((tmp_path / "out.json").read_text())["templates"][0]["controls"][0]["name"]
    )
    write_part(tmp_path / "b", tuco=draw(200), said={"pt_fingerprint": "x", "pt": "\x1b[31mevil"})
    assert "[31mevil in" in (line := refused(tuco("a", "b")))
    assert "\x1b" not in line
    assert "has u [0m, v" in refused(tuco("a", f"--clean={odd}=w"))


def test_keys_in_a_url_are_not_kept(tuco, tmp_path, monkeypatch):
    from tuco_vllm import store

    run(tmp_path / "a")
    monkeypatch.setattr(store, "store_at", lambda out: store.LocalStore(tmp_path / "a"))
    assert tuco("s3://user:secret@bucket/a")[0] == 0
    assert "secret" not in (tmp_path / "out.json").read_text()
