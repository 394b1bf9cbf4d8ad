"""Tiny random pairs of every family, made in a second: the PT and FT of a pair share shapes, not much else.

PT and FT differ in weights, norm weights, vocabulary size, rope theta and eps; each family adds what only
it can get wrong (rope scaling, windows, per-head norms). Weights are large enough that attention is far
from uniform and that PTC and FTC are of one order.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

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
}
CONFIGS = {LlamaForCausalLM: LlamaConfig, MistralForCausalLM: MistralConfig, Qwen3ForCausalLM: Qwen3Config}


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
    model = cls(CONFIGS[cls](**config)).float()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in key:
                parameter.copy_(1 + 0.3 * noise)
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
