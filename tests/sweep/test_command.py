"""``tuco sweep`` as it is typed."""

import re
import sys
import types

import pytest
from asking_models import FakeEngine, questions, write_pair, write_rows

import tuco_vllm
from tuco_vllm import cli
from tuco_vllm.analysis import effects_table
from tuco_vllm.commands import sweep
from tuco_vllm.errors import EngineError


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def engine(monkeypatch):
    """A fake in the place of TucoLLM; ``arguments`` are what it was last made with."""
    fake = FakeEngine()

    def made(pt, ft, **arguments):
        fake.arguments = arguments
        if arguments.get("tensor_parallel_size") == 2:
            raise EngineError("the engine\ncannot start")
        return fake.opened(0)

    monkeypatch.setattr(tuco_vllm, "TucoLLM", made, raising=False)
    arguments = types.SimpleNamespace(eager_or_compiled=lambda pair, given, tokens: (given, "eager"))
    monkeypatch.setitem(sys.modules, "tuco_vllm.engine.arguments", arguments)
    return fake


@pytest.fixture
def tuco(models, engine, tmp_path, monkeypatch, capsys):
    """Run `tuco sweep` in a folder with q.jsonl and mixed.jsonl; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "q.jsonl", questions(20))
    write_rows(tmp_path / "mixed.jsonl", [*questions(6), {"prompt": "?"}])

    def call(*arguments):
        pair = [f"--{name}={path}" for name, path in zip(("pt", "ft"), models, strict=True)]
        code = cli.main(["sweep", *arguments, "--dataset=jsonl", *pair, "--out=out"])
        return code, *capsys.readouterr()

    return call


def test_a_sweep_prints_its_tables_and_exits_with_0(tuco, engine, tmp_path):
    code, out, err = tuco("q.jsonl", "--alphas=0.5,1.5", "--layers=0-0", "--layers=0-1", "--dtype=bfloat16")
    assert code == 0
    assert "Accuracy by α, layers 0 to 0" in out
    assert "Accuracy by α, layers 0 to 1" in out
    assert "α = 1 is asked as well" in err
    assert re.search(r"tuco: engine started in 0 s: processes 0 s \(eager\)", err)
    assert "120/120 answers" in err
    assert engine.arguments == {"task": "generate", "dtype": "bfloat16", "use_tqdm_on_load": False}
    assert (tmp_path / "out" / "effects.csv").read_text().startswith("dataset,first_layer")


def test_a_finished_sweep_prints_its_tables_again_and_starts_no_engine(tuco, engine):
    _, first, _ = tuco("q.jsonl")
    assert tuco("q.jsonl") == (0, first, "")
    assert engine.starts == 1


def test_row_errors_matter_only_when_strict(tuco):
    assert tuco("mixed.jsonl")[0] == 0
    assert tuco("mixed.jsonl", "--strict")[0] == 1
    assert tuco("q.jsonl", "--strict", "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.jsonl"], "no such file"),
        (["q.jsonl", "--alphas=1,x"], "--alphas '1,x' is not numbers"),
        (["q.jsonl", "--alphas=nan"], "from 0 to 2, not nan"),
        (["q.jsonl", "--layers=0-2"], "--layers 0-2: alpha.layers must end at 1"),
        (["q.jsonl", "--layers=1"], "is not A-B"),
        (["q.jsonl", "--shots=-1"], "is not a whole number from 0 up"),
        (["q.jsonl", "--limit=0"], "is not a whole number from 1 up"),
        (["q.jsonl", "--utility=q.jsonl"], "belong together"),
        (["q.jsonl", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["mixed.jsonl", "--dataset=mmlu-csv"], "--shots 0"),
        ([], "the following arguments are required: INPUT"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tuco, engine, arguments, message, models, capsys):
    if "--dataset=mmlu-csv" in arguments:
        pair = [f"--{name}={path}" for name, path in zip(("pt", "ft"), models, strict=True)]
        code, out, err = cli.main(["sweep", *arguments, *pair, "--out=out"]), *capsys.readouterr()
    else:
        code, out, err = tuco(*arguments)
    assert code == 2
    assert message in err
    assert err.startswith("tuco: error: ")
    assert err.count("\n") == 1
    assert (out, engine.starts) == ("", 0)


def test_an_engine_that_does_not_start_is_exit_code_3(tuco, tmp_path):
    code, _, err = tuco("q.jsonl", "--tensor-parallel-size=2")
    assert code == 3
    assert err.splitlines()[-1] == "tuco: error: the engine cannot start"
    assert not (tmp_path / "out").exists()


def test_help_documents_the_row_format_and_names_the_kinds_that_there_are(capsys):
    from tuco_vllm.sweep.datasets import DATASETS
    from tuco_vllm.sweep.grid import PAPER_ALPHAS, parse_alphas

    with pytest.raises(SystemExit):
        cli.main(["sweep", "--help"])
    text = capsys.readouterr().out
    for word in (
        '"options"',
        '"answer"',
        '"messages"',
        '"task"',
        "answer_matching_behavior",
        "SUBJECT_test.csv",
    ):
        assert word in text
    parser = cli._parser()
    asked = parser.parse_args(["sweep", "x", "--dataset=jsonl", "--ft=f", "--out=o"])
    assert parse_alphas(asked.alphas) == PAPER_ALPHAS
    assert f"{{{','.join(DATASETS)}}}" in text
    assert sweep.sweep_job(types.SimpleNamespace(**vars(asked), argv=[])).alphas == PAPER_ALPHAS


def test_the_figures_are_there_though_nobody_sees_the_tables(tuco, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(effects_table, "print_effects", interrupted)
    assert tuco("q.jsonl", "--alphas=0.5")[0] == 130
    assert (tmp_path / "out" / "effects.csv").read_bytes().startswith(b"dataset,")
