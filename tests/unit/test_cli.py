import json
import subprocess
import sys
import types
from pathlib import Path

import fake_scorer
import pyarrow.parquet as pq
import pytest

from tuco_vllm import __version__, cli
from tuco_vllm.commands import score
from tuco_vllm.corpus.cluster import Cluster
from tuco_vllm.errors import EngineError


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return fake_scorer.write_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture
def engine(monkeypatch):
    """Put a fake in the place of the workers; returns the cluster and arguments they were last made with."""
    made = {}

    def workers(cluster, start_engine, make_encoder):
        (job, pair), (_, engine_args, _) = make_encoder.args, start_engine.args
        made.clear()
        made.update(engine_args, cluster=cluster)
        if made.pop("enforce_eager", False):
            raise EngineError("the engine\ncannot start")
        return fake_scorer.LocalWorkers(
            job, pair.ft.directory, max_model_len=engine_args.get("max_model_len") or 64
        )

    monkeypatch.setitem(sys.modules, "tuco_vllm.corpus.driver", types.SimpleNamespace(Workers=workers))
    return made


@pytest.fixture
def tuco(models, engine, tmp_path, monkeypatch, capsys):
    """Run `tuco score` in a folder with good.txt and mixed.txt; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "mixed.txt").write_text("one\n\nthree\n")

    def call(*arguments, pair=models):
        options = [f"--{name}={path}" for name, path in zip(("pt", "ft"), pair, strict=True)]
        code = cli.main(["score", *options, "--out=out", *arguments])
        return code, *capsys.readouterr()

    return call


def error_line(stderr):
    lines = [line for line in stderr.splitlines() if not line.startswith("tuco: starting")]
    assert len(lines) == 1, stderr
    assert lines[0].startswith("tuco: error: ")
    return lines[0]


def test_scoring_prints_a_table_on_stdout_and_exits_with_0(tuco, tmp_path):
    code, out, err = tuco("good.txt")
    assert code == 0
    assert [line.split()[1:] for line in out.splitlines() if "rows" in line or "errors" in line]
    assert "TuCo 50%" in out
    assert "3/3 rows" in err
    assert pq.read_table(tmp_path / "out").num_rows == 3


def test_row_errors_matter_only_when_strict(tuco):
    assert tuco("mixed.txt")[0] == 0
    assert tuco("mixed.txt", "--strict")[0] == 1  # the finished job's table
    assert tuco("mixed.txt", "--strict", "--overwrite")[0] == 1
    assert tuco("good.txt", "--strict", "--overwrite")[0] == 0


def test_a_finished_job_prints_its_table_again(tuco):
    _, first, _ = tuco("good.txt")
    code, second, err = tuco("good.txt")
    assert (code, second, err) == (0, first, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.txt"], "no such input: missing.txt"),
        (["good.txt", "--id-column=key"], "no column 'key'"),
        (["good.txt", "--format=xml"], "invalid choice: 'xml'"),
        (["good.txt", "--limit=0"], "'0' is not a whole number from 1 up"),
        (["good.txt", "--limit=x"], "argument --limit: 'x' is not a whole number from 1 up"),
        (["good.txt", "--nonsense"], "unrecognized arguments: --nonsense"),
        ([], "the following arguments are required: INPUT"),
        (["good.txt", "--engines=0"], "'0' is not a whole number from 1 up"),
        (["good.txt", "--system-prompt=x", "--chat-template=none"], "a system prompt needs a chat template"),
        (["good.txt", "--out=good.txt"], "is a file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tuco, engine, arguments, message):
    code, out, err = tuco(*arguments)
    assert code == 2
    assert message in error_line(err)
    assert out == ""
    assert "Traceback" not in err


def test_bad_models_are_exit_code_2(tuco, models, tmp_path):
    code, _, err = tuco("good.txt", pair=(tmp_path / "nowhere", models[1]))
    assert code == 2
    assert "nowhere" in error_line(err)


def test_another_jobs_directory_is_exit_code_2(tuco):
    tuco("good.txt")
    code, _, err = tuco("mixed.txt")
    assert code == 2
    assert "holds another job" in error_line(err)


def test_a_dead_engine_is_one_line_and_exit_code_3(tuco):
    code, _, err = tuco("good.txt", "--enforce-eager")
    assert code == 3
    assert error_line(err) == "tuco: error: the engine cannot start"


def test_the_unexpected_is_one_line_too_and_a_traceback_with_debug(tuco, monkeypatch):
    monkeypatch.setattr(score, "score_job", lambda _: {}["a bug"])
    code, _, err = tuco("good.txt")
    assert code == 3
    assert error_line(err) == "tuco: error: unexpected KeyError: 'a bug' (--debug shows where)"
    code, _, err = tuco("good.txt", "--debug")
    assert code == 3
    assert "Traceback" in err


def test_ctrl_c_says_how_to_go_on(tuco, monkeypatch):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(fake_scorer.FakeScorer, "step", interrupted)
    code, _, err = tuco("good.txt")
    assert code == 130
    assert "tuco: interrupted; the same command (without --overwrite) goes on from what out holds" in err


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("simplecache::s3://bucket/x", "name a directory, s3://, gs://, az:// or abfs://"),
        ("https://host/x", "name a directory, s3://, gs://, az:// or abfs://"),
        ("s3://key:word@bucket/x", "keys go into the environment"),
    ],
)
def test_an_output_that_is_no_place_is_refused_before_anything_runs(tuco, tmp_path, capsys, out, message):
    before = sorted(tmp_path.rglob("*"))
    code, _, err = tuco("good.txt", f"--out={out}")
    assert code == 2
    assert message in error_line(err)
    assert "word" not in err
    assert cli.main(["status", out]) == 2
    assert message in error_line(capsys.readouterr().err)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("out", ["a:b", "s3:", "C:\\x", "./s3://b/x", "s3:/b/x", "ümlaut x", "a::b"])
def test_an_output_may_have_any_other_name(tuco, tmp_path, out):
    assert tuco("good.txt", f"--out={out}")[0] == 0
    assert (tmp_path / out / "_SUCCESS").exists()
    assert tuco("good.txt", f"--out=file://{tmp_path}/of")[0] == 0
    assert (tmp_path / "of/_SUCCESS").exists()


def test_options_reach_the_engine_only_when_given(tuco, engine):
    tuco("good.txt")
    assert engine == {"dtype": "auto", "row_dtype": "auto", "cluster": Cluster(), "expected_tokens": 3}
    given = ["--dtype=float32", "--row-dtype=model", "--max-model-len=32", "--tensor-parallel-size=2"]
    given += ["--engines=3", "--ray-address=auto", "--pipeline-parallel-size=4"]
    tuco("good.txt", "--overwrite", *given, "--gpu-memory-utilization=0.5", "--trust-remote-code")
    assert engine == {
        "dtype": "float32",
        "row_dtype": "model",
        "max_model_len": 32,
        "expected_tokens": 1,
        "cluster": Cluster(3, 2, "auto", pipeline_parallel_size=4),
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 4,
        "distributed_executor_backend": "mp",
        "gpu_memory_utilization": 0.5,
        "trust_remote_code": True,
    }


def test_prompts_can_be_scored_where_there_are_chats(tuco, tmp_path):
    row = {"prompt": "p", "messages": [{"role": "user", "content": "chat"}]}
    (tmp_path / "both.jsonl").write_text(json.dumps(row) + "\n")
    assert tuco("both.jsonl")[0] == 0
    assert pq.read_table(tmp_path / "out")["prompt"].to_pylist() == ["<|user|>chat\n<|assistant|>"]
    assert tuco("both.jsonl", "--messages-column=none", "--overwrite")[0] == 0
    assert pq.read_table(tmp_path / "out")["prompt"].to_pylist() == ["p"]


def test_options_reach_the_job(tuco, tmp_path):
    row = json.dumps({"text": "x" * 99, "key": "k1", "chat": None})
    (tmp_path / "rows.data").write_text(f"{row}\n" * 5)
    columns = ["--prompt-column=text", "--id-column=key", "--messages-column=chat"]
    cut = ["--limit=3", "--rows-per-file=2", "--no-layers", "--on-long=truncate-left"]
    code, *_ = tuco("rows.data", "--format=jsonl", "--system-prompt=be", *columns, *cut)
    assert code == 0
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert [row["id"] for row in rows] == ["k1"] * 3
    assert rows[0]["prompt"].startswith("<|system|>be\n<|user|>xxx")
    assert rows[0]["prompt_tokens"] == 64
    assert "ptc_norms" not in rows[0]
    assert len(list((tmp_path / "out").glob("part-*"))) == 2
    metadata = pq.read_metadata(next((tmp_path / "out").glob("part-*"))).metadata
    assert metadata[b"tuco.command"].startswith(b"tuco score --pt=")
    assert metadata[b"tuco.template_applied"] == b"true"


def test_status_of_a_finished_a_stopped_and_no_run(tuco, tmp_path, capsys):
    tuco("good.txt")
    assert cli.main(["status", "out"]) == 0
    out = capsys.readouterr().out
    assert "out: finished: 3/3 rows" in out
    assert "TuCo 50%" in out
    (tmp_path / "out/_SUCCESS").unlink()
    record = json.loads((tmp_path / "out/_tuco/run.json").read_text())
    (tmp_path / "out/_tuco/run.json").write_text(json.dumps(record | {"error": "disk full"}))
    assert cli.main(["status", "out"]) == 0
    assert (
        "stopped before its end (disk full); the same command (without --overwrite) resumes it"
        in capsys.readouterr().out
    )
    assert cli.main(["status", "elsewhere"]) == 2
    assert "holds no tuco run" in error_line(capsys.readouterr().err)


def test_demo_and_doctor_are_handed_their_arguments(monkeypatch, capsys):
    calls = []
    demo = types.SimpleNamespace(run_demo=lambda out: calls.append(out) or 0)
    doctor = types.SimpleNamespace(run_doctor=lambda *given: calls.append(given) or 3)
    monkeypatch.setitem(sys.modules, "tuco_vllm.demo.run", demo)
    monkeypatch.setitem(sys.modules, "tuco_vllm.doctor", doctor)
    assert cli.main(["demo", "--out", "here"]) == 0
    assert cli.main(["doctor"]) == 3
    assert cli.main(["doctor", "--pt=P", "--ft=F"]) == 3
    assert cli.main(["doctor", "--pt=P", "--ft=F", "--prompts=x.jsonl"]) == 3
    asked = [(None, None, None), ("P", "F", None), ("P", "F", Path("x.jsonl"))]
    assert [str(calls[0]), *calls[1:]] == ["here", *asked]
    for bad, named in (["--pt=P"], "give both"), (["--prompts=x.jsonl"], "give --pt and --ft"):
        assert cli.main(["doctor", *bad]) == 2
        assert named in error_line(capsys.readouterr().err)


def test_serve_keeps_its_own_flags_and_hands_vllm_the_rest(monkeypatch, capsys):
    calls = []
    app = types.SimpleNamespace(serve=lambda *given, **options: calls.append((given, options)))
    monkeypatch.setitem(sys.modules, "tuco_vllm.server.app", app)
    flags = ["--port", "8001", "--max-model-len=99", "-O3", "--enforce-eager", "--chat-template", "x y"]
    assert cli.main(["serve", "--pt=P", *flags, "--ft", "F", "--max-alpha=1.5", "--min-alpha", "-.5"]) == 0
    assert calls == [(("P", "F", flags), {"limits": (-0.5, 1.5, None), "flag": None})]
    for bad in ("max-alpha=.5", "max-alpha=inf", "max-alpha=x", "min-alpha=2", "min-alpha=nan", "min-alpha="):
        assert cli.main(["serve", "--pt=P", "--ft=F", f"--{bad}"]) == 2
        assert bad[:9] in error_line(capsys.readouterr().err).replace("_", "-")
    assert cli.main(["serve", "--pt=P"]) == 2
    assert "--ft" in error_line(capsys.readouterr().err)
    assert len(calls) == 1


def test_serve_refuses_bad_models_before_vllm_is_imported(tmp_path):
    code = (
        "import sys; from tuco_vllm.cli import main\n"
        f"print(main(['serve', '--pt={tmp_path}', '--ft={tmp_path}']), 'vllm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]
    assert "is not a model directory" in error_line(done.stderr)


def test_version_and_help_are_quick_and_load_nothing_heavy():
    code = (
        "import sys; from tuco_vllm.cli import main\n"
        "try: main(['--version'])\n"
        "except SystemExit as e: print(e.code)\n"
        "print(sorted({'torch', 'vllm', 'transformers', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"tuco {__version__}", "0", "[]"]


def test_a_reader_that_leaves_early_causes_no_noise(tuco):
    tuco("good.txt")
    command = f"{sys.executable} -m tuco_vllm.cli status out | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("0", "141")
    assert done.stderr == ""
