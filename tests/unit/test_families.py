"""The table of families: every row is tested, and what has none is refused with its reason."""

import re
from pathlib import Path

import pytest
import tiny_models
from cells import product
from fake_checkpoint import write_model

from tuco_vllm.config import resolve_pair
from tuco_vllm.errors import InputError
from tuco_vllm.families import FAMILIES, reason_against

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_row_has_its_pair_and_the_pair_its_cells(architecture):
    pair = FAMILIES[architecture].pair
    assert tiny_models.PAIRS[pair][0].__name__ == architecture
    assert pair in {cell.pair for cell in product()}


def test_no_pair_is_without_a_row():
    assert {cls.__name__ for cls, _, _ in tiny_models.PAIRS.values()} == set(FAMILIES)


def test_readme_has_the_rows():
    table = set(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \| ([^|]+?) \|$", README.read_text(), re.MULTILINE))
    rows = {True: "float32", False: "as the model"}
    for family in FAMILIES.values():
        assert (family.known_as, family.special, rows[family.float32_rows]) in table


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, "encoder"),
        ({"architectures": ["LlavaForConditionalGeneration"], "vision_config": {}}, "supported are"),
        ({"architectures": ["LlavaForConditionalGeneration"], "vision_config": {"depth": 1}}, "vision"),
        ({"architectures": ["DeepseekV3ForCausalLM"], "kv_lora_rank": 512}, "MLA"),
        ({"architectures": ["JambaForCausalLM"], "mamba_d_state": 16}, "Mamba"),
        ({"architectures": ["MambaForCausalLM"], "state_size": 16}, "Mamba"),
        ({"architectures": ["NemotronHForCausalLM"], "ssm_state_size": 128}, "Mamba"),
        ({"architectures": ["Qwen3NextForCausalLM"], "linear_num_value_heads": 32}, "GDN"),
        ({"architectures": ["LlamaForCausalLM"], "layer_types": ["linear_attention"]}, "linear_attention"),
        ({"architectures": ["LlamaForCausalLM"], "is_causal": False}, "looks ahead"),
        ({"architectures": ["MistralForCausalLM"], "llama_4_scaling": {"beta": 0.1}}, "queries by position"),
        ({"architectures": ["PhiForCausalLM"]}, "side by side"),
        ({"architectures": ["GptOssForCausalLM"], "rms_norm_eps": 1e-6}, "rms_norm_eps is 1e-06"),
        ({"architectures": ["GptOssForCausalLM"], "layer_types": ["full_attention"]}, "layer_types is"),
        ({"architectures": ["GPT2LMHeadModel"]}, "supported are LlamaForCausalLM"),
        ({}, "supported are LlamaForCausalLM"),
    ],
)
def test_what_is_refused_has_its_reason(config, reason):
    assert reason in str(reason_against(config))


@pytest.mark.parametrize("architecture", FAMILIES)
def test_plain_configs_are_not_refused(architecture):
    kinds = ["sliding_attention", "full_attention"]
    config = {"architectures": [architecture], "layer_types": kinds, "is_causal": True, "kv_lora_rank": None}
    assert reason_against(config) is None


def test_the_reason_reaches_the_user(tmp_path):
    model = write_model(tmp_path / "m", "DeepseekV2ForCausalLM", kv_lora_rank=512)
    with pytest.raises(InputError, match=r"DeepseekV2ForCausalLM is not supported: its attention \(MLA\)"):
        resolve_pair(model, model)
