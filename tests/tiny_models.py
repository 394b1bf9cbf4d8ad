"""Tiny random pairs of every family, made in a second: the PT and FT of a pair share shapes, not much else.

PT and FT differ in weights, norm weights, vocabulary size, rope theta and eps; each family adds what only
it can get wrong (rope scaling, windows, soft-caps, per-head norms, numbers of experts). Weights are large
enough that attention is far from uniform and that PTC and FTC are of one order.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    GemmaForCausalLM,
    GraniteForCausalLM,
    LlamaForCausalLM,
    MistralForCausalLM,
    MixtralForCausalLM,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
    Qwen3MoeForCausalLM,
)

# The oracle's tensors are as small as these models: a second thread only makes it slower, and by a factor of
# ten and more where the threads of an engine, or another program, keep a core busy.
torch.set_num_threads(1)

MAX_LEN = 256
PT_VOCAB, FT_VOCAB = 480, 512

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,  # the smallest that vLLM's CPU attention takes
    "max_position_embeddings": MAX_LEN,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

FOUR_LAYERS = {"num_hidden_layers": 4, "tie_word_embeddings": True}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
TINY_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 4,  # as many as the text half: only one of the two lists is the decoder's
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}

PairConfigs = tuple[Any, dict[str, Any], dict[str, Any]]

PAIRS: dict[str, PairConfigs] = {
    "llama": (
        LlamaForCausalLM,
        {"rope_parameters": LLAMA3_ROPE, "rms_norm_eps": 1e-5, "attention_bias": True},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}, "rms_norm_eps": 1e-6},
    ),
    "llama_mha": (
        LlamaForCausalLM,
        # Prompts longer than PT was made for: its rope goes on, as Hugging Face's does.
        {
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "max_position_embeddings": 64,
        },
        {"num_key_value_heads": 4, "rms_norm_eps": 1e-5, "mlp_bias": True},
    ),
    "mistral": (
        MistralForCausalLM,
        {"sliding_window": 24, "rms_norm_eps": 1e-5},
        {
            "sliding_window": None,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
    "mistral_windowed_ft": (
        MistralForCausalLM,
        {"sliding_window": None, "rms_norm_eps": 1e-5},
        {"sliding_window": 40, "rms_norm_eps": 1e-6},
    ),
    "qwen3": (
        Qwen3ForCausalLM,
        {"rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        {"rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "qwen2": (
        Qwen2ForCausalLM,
        {"rms_norm_eps": 1e-5, "use_sliding_window": True, "sliding_window": 24, "max_window_layers": 0},
        {"rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "gemma": (
        GemmaForCausalLM,
        {"rms_norm_eps": 1e-5, "tie_word_embeddings": True, "num_key_value_heads": 1},
        {
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e5},
        },
    ),
    "gemma2": (
        Gemma2ForCausalLM,
        {
            **FOUR_LAYERS,
            "rms_norm_eps": 1e-5,
            "sliding_window": 24,
            "query_pre_attn_scalar": 20,
            "attn_logit_softcapping": 3.0,
        },
        {
            **FOUR_LAYERS,
            "rms_norm_eps": 1e-6,
            "sliding_window": 40,
            "query_pre_attn_scalar": 32,
            "attn_logit_softcapping": 5.0,
        },
    ),
    "gemma3": (
        Gemma3ForCausalLM,
        {
            **FOUR_LAYERS,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rms_norm_eps": 1e-5,
            "sliding_window": 24,
            "query_pre_attn_scalar": 20,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        {
            **FOUR_LAYERS,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
            "rms_norm_eps": 1e-6,
            "sliding_window": 40,
            "query_pre_attn_scalar": 32,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
            },
        },
    ),
    "phi3": (
        Phi3ForCausalLM,
        {
            "rms_norm_eps": 1e-5,
            "sliding_window": 24,
            "max_position_embeddings": 4 * MAX_LEN,
            # vLLM takes the long factors for all prompts if an engine allows longer ones than this.
            "original_max_position_embeddings": MAX_LEN,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
                "short_factor": [1.0 + 0.1 * n for n in range(8)],
                "long_factor": [2.0] * 8,
                "original_max_position_embeddings": MAX_LEN,
            },
        },
        {
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e5, "partial_rotary_factor": 0.75},
        },
    ),
    "granite": (
        GraniteForCausalLM,
        {
            "rms_norm_eps": 1e-5,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.6,
            "attention_multiplier": 0.1,
        },
        {
            "rms_norm_eps": 1e-6,
            "embedding_multiplier": 2.0,
            "residual_multiplier": 0.8,
            "attention_multiplier": 0.2,
            "logits_scaling": 4.0,
        },
    ),
    "mixtral": (
        MixtralForCausalLM,
        {"rms_norm_eps": 1e-5, "num_local_experts": 4, "sliding_window": 24},
        {"rms_norm_eps": 1e-6, "num_local_experts": 6},
    ),
    "qwen3_moe": (
        Qwen3MoeForCausalLM,
        {**EXPERTS, "rms_norm_eps": 1e-5, "norm_topk_prob": False},
        {
            **EXPERTS,
            "rms_norm_eps": 1e-6,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
}
PAIRS["gemma3_mm"] = (Gemma3ForConditionalGeneration, *PAIRS["gemma3"][1:])


def make_pair(
    name: str, directory: Path, dtype: torch.dtype = torch.float32, **shape: Any
) -> tuple[str, str]:
    """Write the pair ``name`` of PAIRS below ``directory``; returns (pt, ft). ``shape`` overrides SHAPE."""
    cls, pt_extra, ft_extra = PAIRS[name]
    base = {**SHAPE, **shape}
    pt = _random(cls, {**base, **pt_extra, "vocab_size": PT_VOCAB}, seed=1)
    ft = _random(cls, {**base, **ft_extra, "vocab_size": FT_VOCAB}, seed=2)
    # A fine-tune is near its base: half of every tensor of one shape is PT's.
    source = dict(pt.named_parameters())
    with torch.no_grad():
        for key, parameter in ft.named_parameters():
            if key in source and source[key].shape == parameter.shape:
                parameter.mul_(0.5).add_(source[key], alpha=0.5)
    for side, model in (("pt", pt), ("ft", ft)):
        path = directory / side
        model.to(dtype).save_pretrained(path)
        tokenizer().save_pretrained(path)
    return str(directory / "pt"), str(directory / "ft")


def _random(cls: Any, config: dict[str, Any], seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    if cls is Gemma3ForConditionalGeneration:
        config = {"text_config": config, "vision_config": TINY_TOWER, "mm_tokens_per_image": 4}
    model = cls(cls.config_class(**config)).float()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in key:
                parameter.add_(0.3 * noise)  # to one, or to zero where the family's gain is 1 + weight
            elif key.endswith("bias"):
                parameter.copy_(0.2 * noise)
            else:
                scale = 0.6 if "embed" in key else 1.5 / parameter.shape[-1] ** 0.5
                parameter.copy_(scale * noise)
    return model.eval()


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of FT_VOCAB - 32 tokens at most, with a chat template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=PT_VOCAB,
        special_tokens=["<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>", "<|system|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator(
        ["the cat sat on the mat and looked at the other cats of this town " * 20], trainer
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def prompts(count: int, *, seed: int = 0, longest: int = MAX_LEN) -> list[list[int]]:
    """``count`` random token-id prompts: one of 1 token, one of ``longest``, the rest in between."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [1, longest, *torch.randint(1, longest, (max(count - 2, 0),), generator=generator).tolist()][
        :count
    ]
    return [torch.randint(3, PT_VOCAB, (n,), generator=generator).tolist() for n in lengths]
