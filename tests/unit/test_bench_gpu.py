"""bench/gpu.py without a GPU: its plan, its memory rule, its turns, and what it records."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from gpu import test_scoring, test_steering

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def gpu(bench):
    """By path: a folder of the tests has the script's name."""
    spec = importlib.util.spec_from_file_location("bench_gpu", ROOT / "bench" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_of(gpu, tmp_path, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu.py", *arguments, "--out", str(tmp_path)])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run = gpu.Run(gpu.parse())
    run.origin = {"commit": "0123abc", "gpu": None}
    return run


def records(tmp_path):
    return [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]


def test_two_engines_fit_a_card_of_80_gb(gpu, bench, capsys):
    memory = bench("roofline").H100.memory
    for run in ("scoring", "generation"):
        gpu.expect_room(gpu.plan(run, "llama-3-8b", None), memory)
    said = capsys.readouterr().out
    assert said.count("two engines take") == 3
    assert "llama-2-7b scoring" in said


def test_what_does_not_fit_is_refused_before_anything_starts(gpu, bench, tmp_path, monkeypatch):
    h100, h200 = bench("roofline").H100.memory, bench("roofline").H200.memory
    cells = gpu.plan("scoring", "llama-2-7b", None)  # 16384 tokens of 32 heads of keys and values
    with pytest.raises(SystemExit, match=r"llama-2-7b scoring: .* of 79: .*--steps 2048"):
        gpu.expect_room(cells, h100)
    gpu.expect_room(cells, h200)
    gpu.expect_room(gpu.plan("scoring", "llama-2-7b", [2048]), h100)  # the fix that is named
    with pytest.raises(SystemExit, match="llama-3-70b"):
        run_of(gpu, tmp_path, monkeypatch, "generation", "--model", "llama-3-70b", "--dry-run")


def test_cells_come_in_order_of_importance_and_their_engines_together(gpu):
    scoring = [cell[2:4] for cell in gpu.plan("scoring", "qwen3-8b", None)]
    assert scoring[:2] == [(16384, 512), (16384, 2048)]
    assert {step for step, _ in scoring} == {2048, 16384}
    assert {prompt for _, prompt in scoring} == {32, 128, 512, 2048}
    generation = gpu.plan("generation", "llama-3-8b", None)
    assert [cell[:2] for cell in generation] == [
        ("llama-3-8b", "generation"),
        *[("llama-2-7b", "scoring")] * 2,
    ]
    assert generation[0].requests == 64


@pytest.mark.parametrize("run", ["scoring", "generation"])
def test_a_dry_run_has_the_steps_that_are_traced(gpu, run):
    """Prompts that score fill a step and go on in a second; those that generate are decoding in the sixth.
    Of each set of engines the first cell is traced."""
    cells = gpu.plan(run, "llama-3-8b", None)
    firsts = [cell for place, cell in enumerate(cells) if not place or cell[:2] != cells[place - 1][:2]]
    for cell in map(gpu.small, firsts):
        if cell.output:
            assert cell.requests * cell.prompt / cell.step_tokens + cell.output > 6
        else:
            assert cell.requests * cell.prompt > cell.step_tokens >= cell.prompt


def test_settings_are_the_same_for_both_engines_but_for_the_cache(gpu, bench):
    roofline = bench("roofline")
    cells = gpu.plan("scoring", "llama-3-8b", None)
    config = roofline.CONFIGS["llama-3-8b"]
    (stock, _), (tuco, _) = (gpu.of_engine(cells, config, models) for models in (1, 2))
    assert {key for key in stock if stock[key] != tuco[key]} == {"kv_cache_memory_bytes"}
    assert tuco["kv_cache_memory_bytes"] == 2 * stock["kv_cache_memory_bytes"]
    assert (stock["max_num_batched_tokens"], stock["runner"]) == (16384, "pooling")
    room = stock["kv_cache_memory_bytes"] / roofline.kv_bytes_per_token(config, 1)
    assert room >= 2 * 16384 + 2048  # two steps in flight, and a prompt that is cut
    texts, _ = gpu.of_engine(gpu.plan("generation", "llama-3-8b", None)[:1], config, 1)
    assert texts["kv_cache_memory_bytes"] >= 64 * (64 + 128) * roofline.kv_bytes_per_token(config, 1)


@pytest.mark.parametrize("name", ["scoring, eager", "scoring, 8 sequences", "scoring, graphs"])
def test_what_correctness_asks_pytest_for_is_there(gpu, name):
    path, only = gpu.CHECKS[name]
    assert (ROOT / path).is_file()
    assert [mode for mode in test_scoring.MODES if only in mode.id]


def test_correctness_leaves_no_mode_of_steering_out(gpu):
    chosen = [only for path, only in gpu.CHECKS.values() if path.endswith("test_steering.py")]
    assert chosen == ["eager", "not eager"]
    assert {mode.eager for mode in test_steering.MODES} == {True, False}
    assert all(("eager" in mode.id) == mode.eager for mode in test_steering.MODES)


def test_a_check_is_recorded_and_one_that_fails_is_named(gpu, tmp_path, monkeypatch):
    run = run_of(gpu, tmp_path, monkeypatch, "correctness")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)  # this suite's own are not those of the checks
    (tmp_path / "test_it.py").write_text("import pytest\n@pytest.mark.gpu\ndef test_it(): assert False\n")
    monkeypatch.setattr(
        gpu,
        "CHECKS",
        {"good": ("tests/unit/test_import_rules.py", "no_such_test"), "bad": (str(tmp_path), "")},
    )
    run.left = list(gpu.CHECKS)
    run.measure()
    assert [(one["check"], one["exit"]) for one in records(tmp_path)] == [("good", 5), ("bad", 1)]
    assert run.failed == ["good: pytest's exit code is 5", "bad: pytest's exit code is 1"]


@pytest.fixture
def scripted(gpu, bench, tmp_path, monkeypatch):
    """A run whose engines answer at once: seconds by way and round, in the order of their turns."""
    run = run_of(gpu, tmp_path, monkeypatch, "generation", "--rounds", "3")
    run.config, run.engines = bench("roofline").CONFIGS["llama-3-8b"], {}
    run.device = bench("roofline").H100
    run.turns = []

    def turn(cell, way, number, traced=-1):
        run.turns.append((number, way))
        return {"stock": 1.0, "steered": 2.0}.get(way, 4.0) * (100 if number == 0 else number)

    monkeypatch.setattr(run, "turn", turn)
    return run


def test_ratios_are_taken_within_a_round_and_the_first_does_not_count(scripted, tmp_path):
    scripted.rounds(scripted.left[0])
    [record] = records(tmp_path)
    assert record["seconds"]["stock"] == [1.0, 2.0, 3.0]
    assert record["over_stock"]["steered"] == {"median": 0.5, "min": 0.5, "max": 0.5}
    assert record["over_stock"]["mixed"]["median"] == 0.25
    assert record["tokens_per_s"]["stock"] == 64 * 128 / 2
    assert {one["name"]: (one["value"], one["met"]) for one in record["budgets"]} == {
        "plain / stock": (0.25, False),
        "steered / stock": (0.5, True),
        "mixed / steered": (0.5, False),
    }
    assert record["predicted_tokens_per_s"]["stock"] > record["predicted_tokens_per_s"]["steered"]
    assert record["provenance"]["commit"] == "0123abc"


def test_sides_take_turns_and_the_order_is_turned_about(scripted):
    scripted.rounds(scripted.left[1])
    assert [way for _, way in scripted.turns] == ["tuco", "stock", "stock", "tuco"] * 2
    assert [number for number, _ in scripted.turns] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_floors_of_scoring_begin_at_256_tokens_and_know_grouped_heads(gpu, bench):
    roofline, seconds = bench("roofline"), {"stock": [1.0], "tuco": [1.0 / 0.85]}
    shapes = {name: roofline.shape_of(roofline.CONFIGS[name]) for name in ("llama-3-8b", "llama-2-7b")}
    cells = {prompt: gpu.Cell("", "scoring", 2048, prompt, 8) for prompt in (128, 512)}
    assert gpu.budgets(cells[128], seconds, shapes["llama-3-8b"]) == []
    [grouped] = gpu.budgets(cells[512], seconds, shapes["llama-3-8b"])
    [all_heads] = gpu.budgets(cells[512], seconds, shapes["llama-2-7b"])
    assert (grouped["floor"], grouped["met"], grouped["goal"]) == (0.90, False, pytest.approx(0.96, abs=0.01))
    assert (all_heads["floor"], all_heads["met"]) == (0.82, True)


def test_what_fails_and_what_there_is_no_time_for_is_named(gpu, scripted, monkeypatch, capsys):
    """The first cell fails, the second is measured, the time is up in the third."""
    cells = list(scripted.left)

    def rounds(cell):
        if cell == cells[0]:
            raise RuntimeError("out of memory")
        if cell == cells[2]:
            raise TimeoutError

    for name in ("start_engines", "trace"):
        monkeypatch.setattr(scripted, name, lambda _: None)
    monkeypatch.setattr(scripted, "rounds", rounds)
    monkeypatch.setattr(gpu, "Run", lambda options: scripted)
    monkeypatch.setattr(gpu, "set_environment", lambda: None)  # it would be all later tests' too
    gpu.main()
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["failed"] == [f"{cells[0]}: out of memory"]
    assert summary["no_time_for"] == [str(cells[2])]


def test_fewer_than_three_rounds_are_no_measurement(gpu, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "scoring", "--rounds", "2"])
    with pytest.raises(SystemExit):
        gpu.parse()


def test_provenance_of_a_copy_without_history(bench, monkeypatch):
    provenance = bench("provenance")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("TUCO_COMMIT", "0123abc")
    assert provenance.provenance()["commit"] != "0123abc" or not Path(".git").exists()
    monkeypatch.setattr(provenance, "_git", lambda *_: None)
    found = provenance.provenance()
    assert (found["commit"], found["dirty"]) == ("0123abc", None)


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize("run", ["scoring", "generation"])
def test_a_dry_run_measures_and_traces_every_cell(run, gpu, tmp_path):
    command = [sys.executable, "bench/gpu.py", run, "--dry-run", "--rounds", "3", "--out", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    summary = json.loads(ended.stdout.splitlines()[-1])
    assert (summary["failed"], summary["no_time_for"]) == ([], [])
    found = records(tmp_path)
    planned = [gpu.small(cell) for cell in gpu.plan(run, "llama-3-8b", None)]
    measured = [gpu.Cell(*(one[key] for key in gpu.Cell._fields)) for one in found if "over_stock" in one]
    assert measured == planned
    for one in found:
        if one["kind"] == "trace":
            assert one["kernels"]
        for engine in one.get("engines", {}).values():
            assert engine["kv_bytes_per_token"] > 0
