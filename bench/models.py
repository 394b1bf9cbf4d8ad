"""The shapes that are measured, random checkpoints of them, and the bound that arithmetic sets.

Speed depends on shapes, not on what the weights say, so a benchmark pair is random: PT, and FT near it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

VOCAB_SIZE = 2048


@dataclass(frozen=True)
class Shape:
    """A model by its sizes."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    family: str = "llama"
    """Or "gemma2": four norms, soft-caps, a window on every other layer, scaled embeddings."""

    def layer_flops(self, tokens: float) -> tuple[float, float]:
        """FLOPs a token of one decoder layer, prompts of ``tokens``: (all of it, its K and V projections).

        Two FLOPs a weight of the seven projections, and the causal mean of (n + 1) / 2 keys a query, each
        multiplied twice (scores, values). Norms, rope and activations are left out: bytes, not FLOPs.
        """
        key_value = 2 * self.hidden * 2 * self.kv_heads * self.head_dim
        query_output = 2 * self.hidden * 2 * self.heads * self.head_dim
        mlp = 2 * 3 * self.hidden * self.ffn
        attention = 2 * (tokens + 1) * self.heads * self.head_dim
        return key_value + query_output + mlp + attention, key_value

    def bound(self, tokens: float) -> float:
        """The most that scoring throughput can be, relative to a prefill of FT alone.

            bound = 1 / (1 + s - (1 - s) / L),    s = FLOPs of K and V / FLOPs of a layer

        PT adds its K and V for all tokens, the share s of every layer. FT's last layer is pruned to the rows
        that end a prompt, save its K and V: the share 1 - s of one layer in L comes back. What PT and FT's
        last layer do on the rows themselves, one token a prompt, is left out: of a prompt of n tokens it is
        1/n of a forward, so at 32 tokens the bound is 3 % too kind, at 256 it is exact to 0.4 %.
        """
        layer, key_value = self.layer_flops(tokens)
        share = key_value / layer
        return 1 / (1 + share - (1 - share) / self.layers)

    def response_bound(self, prompt: int, response: int, *, again: bool) -> float:
        """The same with a response of n tokens after a prompt of m, relative to a prefill of all m + n.

            stock = L ((m + n) G + a(1, m + n)),    a(i, j) = FLOPs of attention from tokens i to j
            ours  = (L - 1) (T G + a(1, T)) + (L + 1) (T K + n (G - K) + a(m, T)),    T = m + n - 1

        G is a layer's products a token, K those of its keys and values. FT's first L - 1 layers see T tokens
        (the last one is only written); PT's L and FT's last see keys and values of T and the rest of n. With
        ``again`` FT's other layers run on the rows a second time, in float32, whose products count as if
        they took no longer: they do.
        """
        return self.pass_flops(prompt + response) / self.response_flops(prompt, response, again=again)

    def reward_bound(self, prompt: int, response: int, *, again: bool) -> float:
        """The same with the response's log-probabilities: PT's own pass over T tokens, and two heads on n."""
        heads = 2 * response * 2 * self.hidden * VOCAB_SIZE
        ours = self.response_flops(prompt, response, again=again) + heads
        return self.pass_flops(prompt + response) / (ours + self.pass_flops(prompt + response - 1))

    def output_co_bound(self, prompt: int) -> float:
        """A score and OutputCo relative to a prefill: PT's own pass is another."""
        return 1 / (1 / self.bound(prompt) + 1)

    def pass_flops(self, tokens: int) -> float:
        """FLOPs of one model's layers on a sequence."""
        products, _ = self.layer_flops(-1.0)  # (n + 1) / 2 tokens of attention are none
        return self.layers * (tokens * products + self._attention_flops(1, tokens))

    def response_flops(self, prompt: int, response: int, *, again: bool) -> float:
        """``ours`` of ``response_bound``."""
        products, key_value = self.layer_flops(-1.0)
        tokens = prompt + response - 1
        of_rows = response * (products - key_value) + self._attention_flops(prompt, tokens)
        ours = (self.layers - 1) * (tokens * products + self._attention_flops(1, tokens))
        ours += (self.layers + 1) * (tokens * key_value + of_rows)
        return ours + again * (self.layers - 1) * of_rows

    def _attention_flops(self, first: int, last: int) -> float:
        return 4 * self.heads * self.head_dim * sum(range(first, last + 1))


SHAPES = {
    "gqa": Shape(hidden=512, layers=12, heads=8, kv_heads=2, head_dim=64, ffn=1408),
    "mha": Shape(hidden=512, layers=12, heads=8, kv_heads=8, head_dim=64, ffn=1408),
    "gemma2": Shape(hidden=512, layers=12, heads=8, kv_heads=4, head_dim=64, ffn=1408, family="gemma2"),
}
SMOKE_SHAPES = {
    "gqa": Shape(hidden=128, layers=3, heads=4, kv_heads=2, head_dim=32, ffn=192),
    "mha": Shape(hidden=128, layers=3, heads=4, kv_heads=4, head_dim=32, ffn=192),
    "gemma2": Shape(hidden=128, layers=3, heads=4, kv_heads=2, head_dim=32, ffn=192, family="gemma2"),
}


def write_pair(shape: Shape, directory: Path, dtype: str = "float32") -> tuple[str, str]:
    """Save a random pair below ``directory``; returns the directories (pt, ft).

    Weights have variance 1 / fan-in, so activations stay of order one through any number of layers. FT is
    PT plus noise of half its size: PTC and FTC are of one order, and a wrong executor shows.
    """
    from copy import deepcopy

    import torch
    from transformers import AutoModelForCausalLM

    generator = torch.Generator().manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config_of(shape))

    def perturb(scale: float) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(noise, alpha=scale / parameter.shape[-1] ** 0.5)

    paths = []
    for side, scale in (("pt", 1.0), ("ft", 0.5)):
        perturb(scale)
        paths.append(str(directory / side))
        deepcopy(model).to(getattr(torch, dtype)).save_pretrained(paths[-1])
    return paths[0], paths[1]


def write_adapter(base: str, directory: Path, rank: int, dtype: str) -> tuple[str, str]:
    """Save a random LoRA adapter of all linear layers, and the model merged; returns both directories."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wrapped = get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank, target_modules=names))
    generator = torch.Generator().manual_seed(rank)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise / (2 * parameter.shape[-1]) ** 0.5)
    wrapped.to(getattr(torch, dtype)).save_pretrained(directory / "adapter")
    wrapped.merge_and_unload().save_pretrained(directory / "merged")
    return str(directory / "adapter"), str(directory / "merged")


def config_of(shape: Shape) -> Any:
    """The Hugging Face config of a shape."""
    from transformers import Gemma2Config, LlamaConfig

    return {"llama": LlamaConfig, "gemma2": Gemma2Config}[shape.family](
        vocab_size=VOCAB_SIZE,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=4096,
        initializer_range=1e-3,  # write_pair adds the weights
        tie_word_embeddings=shape.family == "gemma2",  # vLLM's class has no head of its own
    )
