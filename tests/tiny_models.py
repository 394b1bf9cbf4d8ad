"""Tiny random pairs of every family, made in a second: the PT and FT of a pair share shapes, not much else.

PT and FT differ in weights, norm weights, vocabulary size and all that ``tiny_families`` says. Weights are
large enough that attention is far from uniform and that PTC and FTC are of one order.
"""

from pathlib import Path
from typing import Any

import torch
from tiny_families import MAX_LEN, PAIRS, SHAPE, TINY_TOWER
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Gemma3ForConditionalGeneration, PreTrainedTokenizerFast

# The oracle's tensors are as small as these models: a second thread only makes it slower, and by a factor of
# ten and more where the threads of an engine, or another program, keep a core busy.
torch.set_num_threads(1)

PT_VOCAB, FT_VOCAB = 480, 512

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_pair(
    name: str, directory: Path, dtype: torch.dtype = torch.float32, **shape: Any
) -> tuple[str, str]:
    """Write the pair ``name`` of PAIRS below ``directory``; returns (pt, ft). ``shape`` overrides SHAPE."""
    cls, pt_extra, ft_extra = PAIRS[name]
    base = {**SHAPE, **shape}
    pt = random_model(cls, {**base, **pt_extra, "vocab_size": PT_VOCAB}, seed=1)
    ft = random_model(cls, {**base, **ft_extra, "vocab_size": FT_VOCAB}, seed=2)
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


def random_model(cls: Any, config: dict[str, Any], seed: int) -> Any:
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
