"""The arithmetic behind bench/gpu.py against hand-computed numbers, its plan and its clock."""

from pathlib import Path

import pytest

from tuco_vllm.config import resolve_pair
from tuco_vllm.errors import InputError

GIB = 1 << 30


@pytest.fixture
def shapes(bench):
    return bench("gpu_shapes")


@pytest.fixture
def plan(bench):
    return bench("gpu_plan")


@pytest.fixture
def configs(shapes):
    return {name: shapes.config_of(name, smoke=False) for name in shapes.CONFIGS}


@pytest.mark.parametrize(
    ("name", "total"),
    [("llama-3-8b", 8_030_261_248), ("llama-2-7b", 6_738_415_616), ("qwen3-8b", 8_190_735_360)],
)
def test_parameters_are_the_published_ones(shapes, configs, name, total):
    sizes = shapes.parameters(configs[name])
    final_norm = configs[name]["hidden_size"]
    assert sizes["layers"] + 2 * sizes["embedding"] + final_norm == total


@pytest.mark.parametrize(
    ("name", "share", "bound"),
    [("llama-3-8b", 0.0385, 0.99), ("llama-2-7b", 0.166, 0.88), ("qwen3-8b", 0.0435, 0.98)],
)
def test_share_of_keys_and_values_and_bound(shapes, configs, name, share, bound):
    shape = shapes.shape_of(configs[name])
    layer, key_value = shape.layer_flops(0)
    assert key_value / layer == pytest.approx(share, abs=1e-3)
    assert shape.bound(512) == pytest.approx(bound, abs=5e-3)


def test_flops_of_llama_3_8b(shapes, configs):
    """A layer has 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336) weights, and (512 + 1) / 2 keys a query."""
    shape = shapes.shape_of(configs["llama-3-8b"])
    weights, attention = 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336), 2 * 513 * 4096
    assert shapes.prefill_flops(shape, 512) == 32 * (2 * weights + attention)
    assert shapes.work(shape, 512)["tuco"] == pytest.approx(1.008, abs=1e-3)


def test_mfu_is_flops_done_over_flops_possible(shapes):
    assert shapes.mfu(flops_per_token=14e9, tokens_per_second=40_000, ceiling=800e12) == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("name", "stock"), [("llama-3-8b", 131_072), ("llama-2-7b", 524_288), ("qwen3-8b", 147_456)]
)
def test_kv_bytes_a_token(shapes, configs, name, stock):
    shape = shapes.shape_of(configs[name])
    assert shapes.kv_bytes_per_token(shape, 1) == stock
    assert shapes.kv_bytes_per_token(shape, 2) == 2 * stock


def test_a_pair_without_weights_is_one_for_engines_that_make_them_up(shapes, configs, tmp_path):
    pt, ft = shapes.write_pair(configs["qwen3-8b"], tmp_path)
    assert resolve_pair(pt, ft, weights=False).ft.architecture == "Qwen3ForCausalLM"
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        resolve_pair(pt, ft)


def test_cells_come_in_order_of_importance(plan, configs):
    names = [str(cell) for cell in plan.cells(configs, plan.FULL)]
    assert len(names) == len(set(names))
    assert names[:6] == [
        "machine",
        "llama-3-8b scoring 512 tokens",
        "llama-3-8b generation 256 at once",
        "llama-3-8b generation 64 at once",
        "llama-3-8b scoring 128 tokens",
        "llama-3-8b scoring 2048 tokens",
    ]
    others = [
        "llama-2-7b scoring 512 tokens",
        "qwen3-8b scoring 512 tokens",
        "qwen3-8b generation 256 at once",
    ]
    assert sorted(others, key=names.index) == others
    assert names.index("llama-3-8b references 512 tokens") < names.index(others[0])


def test_only_some_kinds_of_cells(plan, configs):
    kinds = [cell.kind for cell in plan.cells(configs, plan.FULL, ["profile", "kernels"])]
    assert kinds == ["profile", "profile generation", "kernels"]
    first, *rest = plan.cells(configs, plan.FULL, ["scoring"])
    assert first.kind == "machine"  # MFU is a fraction of what it measures
    assert {cell.kind for cell in rest} == {"scoring"}


def test_a_crew_fits_and_no_engine_starts_twice_while_it_is_needed(plan, configs):
    left, living, starts, room = plan.cells(configs, plan.FULL), [], [], 130 * GIB
    while left:
        if not {*left[0].members()} <= {*living}:
            crew = plan.crew(left, configs, plan.FULL, room, living)
            assert {*left[0].members()} <= {*crew}
            assert sum(plan.device_bytes(role, configs.get(name), plan.FULL) for role, name in crew) <= room
            starts += [key for key in crew if key not in living]
            living = crew
        left.pop(0)
    assert starts[:5] == [("machine", "")] + [(role, "llama-3-8b") for role in plan.SCORING + plan.GENERATING]
    assert len([key for key in starts if key[1] == "llama-3-8b"]) == 6
    first_others = starts.index(("scoring stock", "llama-2-7b"))
    assert ("scoring tuco", "qwen3-8b") in starts[first_others : first_others + 4]  # with Llama-2's


def test_settings_of_engines_that_share_a_device(bench):
    def settings(role, **more):
        spec = {"compiled": True, "max_model_len": 96, "max_num_seqs": 8, "step_tokens": 128, "caches": "c"}
        more = {"on_gpu": True, "kv_cache_bytes": GIB, **more}
        return bench("gpu_roles").Spec(role=role, pt="pt", ft="ft", **spec, **more).engine_args()

    scoring, generating = settings("scoring tuco"), settings("generating stock")
    assert scoring["gpu_memory_utilization"] < 0.05  # else vLLM refuses a device that others are on
    assert scoring["compilation_config"] == {"cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64, 128]}
    assert (scoring["runner"], generating["runner"]) == ("pooling", "generate")
    assert (scoring["enable_prefix_caching"], "enable_prefix_caching" in generating) == (False, False)
    differ = {key for key in scoring if scoring[key] != generating.get(key)}
    assert differ == {"runner", "enable_prefix_caching"}
    assert settings("two passes")["enforce_eager"]
    assert not settings("scoring stock", more_arguments={"enforce_eager": False})["enforce_eager"]
    assert "gpu_memory_utilization" not in settings("scoring stock", on_gpu=False)


def test_the_clock_runs_out(plan):
    plan.Deadline(1).check(59)
    with pytest.raises(plan.OutOfTime):
        plan.Deadline(1).check(61)
    with pytest.raises(plan.OutOfTime):
        plan.Deadline(0).check()


def test_rounds_end_with_the_time_and_only_whole_ones_count(bench, plan):
    cells = bench("gpu_cells")
    order = []

    def turn(name, last):
        def take(number):
            order.append(name)
            if number > last:
                raise plan.OutOfTime
            return 0.01 * number

        return take

    run = cells.Bench(plan.SMOKE, rounds=5, smoke=True, deadline=plan.Deadline(1))
    seconds = cells.rounds_of({"a": turn("a", 2), "b": turn("b", 9)}, run)
    assert seconds == {"a": [0.01, 0.02], "b": [0.01, 0.02]}
    assert order == ["a", "b", "b", "a", "a"]
    with pytest.raises(plan.OutOfTime):
        cells.rounds_of({"a": turn("a", 0)}, run)


def test_ratios_are_taken_within_a_round(bench):
    cells = bench("gpu_cells")
    found = cells.ratios_to("stock", {"stock": [1.0, 2.0, 4.0], "tuco": [2.0, 2.0, 5.0]})
    assert found["tuco"] == {"median": 0.8, "min": 0.5, "max": 1.0}
    assert cells.ratios_to("stock", {"tuco": [1.0]}) == {}


def test_loads_ask_for_what_they_are_named_for(bench):
    cells = bench("gpu_cells")
    roles = {role: (role, "x") for role in ("generating stock", "generating tuco")}
    loads = cells.loads_of(64, (1, 8, 64, 256), roles)
    assert list(loads) == ["stock", "plain", "scored", "1 alpha", "8 alphas", "64 alphas"]
    assert loads["stock"] == roles["generating stock"]
    assert cells.wishes_of("plain", 4) is None
    assert cells.wishes_of("scored", 2) == [(1.0, True)] * 2
    for load, different in (("1 alpha", 1), ("8 alphas", 8), ("64 alphas", 64)):
        alphas = {alpha for alpha, scored in cells.wishes_of(load, 64) if not scored}
        assert len(alphas) == different
        assert 1.0 not in alphas


def test_budgets(bench):
    budgets = bench("gpu_budgets")
    near = budgets.judge("scoring / stock, grouped heads", 0.95, bound=0.99)
    assert (near["met"], near["goal_met"], near["goal"]) == (True, False, pytest.approx(0.9603))
    assert "floor 0.45 NOT MET" in budgets.in_words(budgets.judge("1 alpha / stock", 0.40))
    assert budgets.all_met([{"budgets": [near]}, {}]) is True
    assert budgets.all_met([{}]) is None


@pytest.mark.parametrize(
    ("kernel", "group"),
    [
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT", "matrix products"),
        ("void cutlass::device_kernel<flash::enable_sm90<flash::FlashAttnFwdSm90<...>>>", "attention"),
        ("void vllm::reshape_and_cache_flash_kernel<__nv_bfloat16>", "cache writes"),
        ("kernel_unified_attention_2d", "attention"),
        ("_dual_rms_norm_kernel", "our kernels"),
        ("_accumulate_contribution_kernel", "our kernels"),
        ("void vllm::fused_add_rms_norm_kernel<c10::BFloat16, 8>", "norms"),
        ("triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_0", "norms"),
        ("triton_poi_fused_mul_silu_slice_1", "other fused"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("aten::mm", "matrix products"),
        ("void at::native::index_elementwise_kernel<128, 4>", "rest"),
    ],
)
def test_kernels_by_group(bench, kernel, group):
    assert bench("gpu_profile").group_of(kernel) == group


def test_gaps_are_what_no_kernel_fills(bench):
    """0 - 10 and 5 - 20 overlap, 30 - 40 stands apart: 30 busy of 40."""
    found = bench("gpu_profile").summary(
        [
            ("nvjet", 0.0, 10_000.0),
            ("_steer_residual_kernel", 30_000.0, 40_000.0),
            ("gemm", 5_000.0, 20_000.0),
        ]
    )
    assert (found["busy_ms"], found["span_ms"], found["gaps_ms"]) == (30.0, 40.0, 10.0)
    assert found["groups_ms"] == {"matrix products": 25.0, "our kernels": 10.0}


def test_provenance_of_a_copy_without_history(bench, monkeypatch):
    provenance = bench("provenance")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("TUCO_COMMIT", "0123abc")
    assert provenance.provenance()["commit"] != "0123abc" or not Path(".git").exists()
    monkeypatch.setattr(provenance, "_git", lambda *_: None)
    found = provenance.provenance()
    assert (found["commit"], found["dirty"]) == ("0123abc", None)
