"""bench/roofline.py against hand-computed numbers and models.py's bounds, and README's tables against it."""

import json
from pathlib import Path

import pytest

from tuco_vllm.config import resolve_pair
from tuco_vllm.errors import InputError

ROOT = Path(__file__).parents[2]
INFINITE = float("inf")


@pytest.fixture
def roofline(bench):
    return bench("roofline")


def device(roofline, flops, bytes_per_s):
    return roofline.Device("", flops, bytes_per_s, 0)


@pytest.mark.parametrize(
    ("name", "ends", "total"),
    [
        ("llama-3-8b", 2, 8_030_261_248),
        ("llama-2-7b", 2, 6_738_415_616),
        ("qwen3-8b", 2, 8_190_735_360),
        ("gemma-2-9b", 1, 9_241_705_984),
        ("llama-3-70b", 2, 70_553_706_496),
    ],
)
def test_parameters_are_the_published_ones(roofline, name, ends, total):
    config = roofline.CONFIGS[name]
    sizes = roofline.parameters(config)
    assert sizes["layers"] + ends * sizes["embedding"] + config["hidden_size"] == total


@pytest.mark.parametrize(
    ("name", "stock"),
    [("llama-3-8b", 131_072), ("llama-2-7b", 524_288), ("qwen3-8b", 147_456), ("gemma-2-9b", 344_064)],
)
def test_kv_bytes_a_token(roofline, name, stock):
    assert roofline.kv_bytes_per_token(roofline.CONFIGS[name], 1) == stock
    assert roofline.kv_bytes_per_token(roofline.CONFIGS[name], 2) == 2 * stock


def test_a_pair_without_weights_is_one_for_engines_that_make_them_up(roofline, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(roofline.CONFIGS["gemma-2-9b"]))
    directory = str(tmp_path)
    assert resolve_pair(directory, directory, weights=False).ft.architecture == "Gemma2ForCausalLM"
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        resolve_pair(directory, directory)


@pytest.mark.parametrize("name", ["llama-3-8b", "llama-2-7b", "qwen3-8b", "gemma-2-9b"])
def test_where_bytes_cost_nothing_scoring_reaches_the_bound_by_flops(roofline, name):
    """At one long prompt a step, whose row is nothing beside it; ``Shape.bound`` leaves it out."""
    config = roofline.CONFIGS[name]
    line = roofline.Roofline(config, device(roofline, 1.0, INFINITE))
    step = roofline.prefill(8192, 8192)
    assert line.stock(step) == pytest.approx(roofline.shape_of(config).pass_flops(8192), rel=1e-9)
    ratio = line.stock(step) / line.pair(step)
    assert ratio == pytest.approx(roofline.shape_of(config).bound(8192), rel=1e-3)


def test_where_bytes_cost_nothing_rows_cost_their_flops(roofline):
    """Prompts of 8 tokens: each has one row in L + 1 layers, in float32 three more times 2 L."""
    config = roofline.CONFIGS["llama-3-8b"]
    line, shape = roofline.Roofline(config, device(roofline, 1.0, INFINITE)), roofline.shape_of(config)
    products, keys = shape.layer_flops(-1.0)
    attention = 4 * 4096 * 8
    step = roofline.prefill(8 * 1000, 8)
    without = roofline.prefill(8 * 1000, 8)._replace(rows=0, row_pairs=0)
    rows = 1000 * (products - keys + attention)
    assert line.pair(step) - line.pair(without) == pytest.approx(33 * rows, rel=1e-9)
    wide = 1000 * (3 * (products - keys) + attention)
    assert line.pair(step, wide=True) - line.pair(without) == pytest.approx((33 + 31) * wide, rel=1e-9)


@pytest.mark.parametrize(("wide", "limit"), [(False, 1 / 2), (True, 1 / 3)])
def test_decoding_reads_weights_twice_or_three_times(roofline, wide, limit):
    """By bytes alone, without requests and a head; float32 rows do not read FT's K and V again."""
    config = roofline.CONFIGS["llama-3-8b"] | {"vocab_size": 0}
    line, step = roofline.Roofline(config, device(roofline, INFINITE, 1.0)), roofline.decode(0, 0)
    layer = 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336)
    assert line.stock(step) == 32 * 2 * layer
    assert line.pair(step) == 2 * line.stock(step)
    assert line.stock(step) / line.pair(step, wide=wide) == pytest.approx(limit, abs=0.005)
    assert line.adapter(step) == line.stock(step, adapted=True)


def test_bytes_that_move_in_a_prefill(roofline):
    """Llama-3-8B, 1000 tokens, a row, by bytes alone: a layer reads its weights and 1000 keys and values, and
    moves a token's stream 8 times (two norms with their adds), q and k twice (rope), k and v twice (cache
    writes), and 3 * 14336 (the activation). PT's part: its norm's output, k twice, k and v twice."""
    config = roofline.CONFIGS["llama-3-8b"]
    line, step = roofline.Roofline(config, device(roofline, INFINITE, 1.0)), roofline.prefill(1000, 1000)
    key_weights, cached = 2 * 4096 * 1024, 2 * 1024 * 1000
    weights = 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336)
    layer = weights + cached + 1000 * (8 * 4096 + 2 * (4096 + 1024) + 2 * 2 * 1024 + 3 * 14336)
    assert line.stock(step) == 2 * 32 * layer
    keys = key_weights + 1000 * (4096 + 2 * 1024 + 2 * 2 * 1024)
    rows = weights - key_weights + cached
    assert line.pair(step) == 2 * (31 * layer + 33 * (keys + rows))
    assert line.pair(step, wide=True) == 2 * (31 * layer + 33 * (keys + rows) + 31 * rows)
    # An adapter's products read 9 H + 3 Q + 4 K + 5 F numbers a token; PT's k and v are a copy.
    adapted = 1000 * (9 * 4096 + 3 * 4096 + 4 * 1024 + 5 * 14336)
    assert line.stock(step, adapted=True) == 2 * 32 * (layer + adapted)
    copies = 1000 * (2 * 2 * 1024 + 2 * 1024 + 2 * 2 * 1024)
    of_both = weights - key_weights + 2 * cached
    assert line.adapter(step, wide=True) == 2 * 32 * (layer + adapted + copies + of_both)


def test_an_adapters_rows_are_read_behind_the_tokens(roofline):
    """By FLOPs alone a decode step has twice the tokens; in float32 a scored one has each row's six parts."""
    config = roofline.CONFIGS["llama-3-8b"] | {"vocab_size": 0}
    line = roofline.Roofline(config, device(roofline, 1.0, INFINITE))
    step, shape = roofline.decode(64, 0), roofline.shape_of(config)
    assert line.adapter(step) == pytest.approx(2 * line.stock(step))
    products, keys = shape.layer_flops(-1.0)
    scored = roofline.prefill(512, 512)._replace(pairs=0, row_pairs=0, cached=0)
    more = line.adapter(scored, wide=True) - line.stock(scored)
    assert more == pytest.approx(32 * 6 * (products - keys))


def test_memory_of_a_step_is_counted(roofline):
    """Llama-3-8B, a pair that scores: two models' layers, an embedding, 1000 tokens of cache, 100 a step."""
    config = roofline.CONFIGS["llama-3-8b"]
    size = roofline.parameters(config)
    assert size == {
        "layers": 32 * (4096 * (2 * 4096 + 2 * 1024 + 3 * 14336) + 2 * 4096),
        "embedding": 525_336_576,
    }
    weights, cache = 2 * (2 * size["layers"] + size["embedding"]), 1000 * 262_144
    activations = 2 * 100 * (4 * 14336 + 10 * 4096)
    found = roofline.engine_bytes(config, 100, models=2, kv_tokens=1000)
    assert found == weights + cache + activations + (2 << 30)
    generating = roofline.engine_bytes(config, 100, models=2, kv_tokens=1000, logits=64)
    assert generating - found == 2 * size["embedding"] + 64 * 128256 * 12
    halved = roofline.engine_bytes(config, 100, models=2, kv_tokens=1000, gpus=2)
    assert halved == (weights + cache) // 2 + 2 * 100 * (2 * 14336 + 10 * 4096) + (2 << 30)


def test_a_turn_is_its_steps(roofline):
    config = roofline.CONFIGS["llama-3-8b"]
    line = roofline.Roofline(config, roofline.H100)
    scored = roofline.seconds_of_turn(line, 2048, 512, 16, 0, wide=True)
    assert scored["stock"] == pytest.approx(4 * line.stock(roofline.prefill(2048, 512)))
    assert scored["tuco"] == pytest.approx(4 * line.pair(roofline.prefill(2048, 512), wide=True))
    texts = roofline.seconds_of_turn(line, 4096, 64, 64, 128, wide=True)
    assert texts["stock"] == texts["plain"] < texts["scored"] < texts["steered"] == texts["mixed"]
    assert 0.45 < texts["stock"] / texts["steered"] < 0.55


def test_tables_of_readme_are_computed(bench):
    tables = bench("roofline_tables")
    readme = (ROOT / "bench" / "README.md").read_text()
    for lines in (tables.scoring_table(), tables.decoding_table(), tables.seventy_table()):
        assert "\n".join(lines) + "\n\n" in readme, "python bench/roofline_tables.py prints them anew"
