"""The oracle's own identities: everything else is measured against it, so it is tested against the maths."""

import pytest
import tiny_models
import tolerances
import torch
from transformers import AutoModel, Gemma2Config, PreTrainedModel, Qwen3MoeConfig
from transformers.models.gemma2.modeling_gemma2 import apply_rotary_pos_emb

from tuco_vllm import decomposition
from tuco_vllm.oracle import Oracle, _Float64Stays, decoder_layers

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module", params=tiny_models.PAIRS)
def pair(request: pytest.FixtureRequest, pair_dirs) -> tuple[str, str]:
    return pair_dirs(request.param, "float32")


def test_computes_in_float64(pair) -> None:
    """Also inside the norms, which Hugging Face would run in float32."""
    oracle = Oracle(*pair)
    narrow: list[torch.dtype] = []

    def watch(_: object, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        narrow.extend(
            t.dtype for t in (*args, output) if isinstance(t, torch.Tensor) and t.is_floating_point()
        )

    for module in oracle.ft.modules():
        if "Norm" in type(module).__name__ or isinstance(module, torch.nn.Linear):
            module.register_forward_hook(watch)
    oracle.norms(tiny_models.prompts(1))
    assert set(narrow) == {torch.float64}
    # A norm really loses digits when asked for float32, so the mode that prevents it matters.
    norm = decoder_layers(oracle.ft)[0].post_attention_layernorm
    x = torch.randn(1, tiny_models.SHAPE["hidden_size"], dtype=torch.float64)
    with _Float64Stays():
        exact = norm(x)
    assert (norm(x) - exact).abs().max() > 1e-9


def test_batching_changes_nothing(pair) -> None:
    oracle, prompts = Oracle(*pair), tiny_models.prompts(6)
    together, alone = oracle.norms(prompts), torch.cat([oracle.norms([p]) for p in prompts])
    assert ((together - alone).abs() / alone.abs()).max() < tolerances.ORACLE_FLOAT64


def test_a_model_with_itself_scores_exactly_zero(pair) -> None:
    _, ft = pair
    norms = Oracle(ft, ft).norms(tiny_models.prompts(3))
    assert norms[..., 1].max() == 0.0
    assert norms[..., 3].max() == 0.0


def test_contributions_add_up_to_the_stream(pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """x_L = x_0 + P + F (DESIGN identities): the final hidden state of plain FT, before its norm."""
    oracle = Oracle(*pair)
    prompt = tiny_models.prompts(2)[1][:40]
    sums: dict[str, torch.Tensor] = {}

    def keep(*vectors: torch.Tensor) -> torch.Tensor:
        sums["ptc"], sums["ftc"] = vectors[2:]  # the last call's are P and F of the last layer
        return norms(*vectors)

    norms = decomposition.norms
    monkeypatch.setattr(decomposition, "norms", keep)
    oracle.norms([prompt])
    stream: list[torch.Tensor] = []
    plain = AutoModel.from_pretrained(
        pair[1], dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
    )
    layers = decoder_layers(plain)
    # What the first layer gets: some families scale their embeddings before.
    layers[0].register_forward_pre_hook(lambda _, args: stream.append(args[0]))
    layers[-1].register_forward_hook(
        lambda _, __, out: stream.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.inference_mode():
        plain(torch.tensor([prompt]), use_cache=False)
    hidden = sums["ptc"].shape[-1]
    first, last = (x.reshape(-1, hidden)[-1] for x in stream)
    total = first + sums["ptc"][0] + sums["ftc"][0]
    # Plain FT runs its norms in float32 here, so the comparison is to float32.
    assert (total - last).abs().sum() < 1e-5 * total.abs().sum()


def test_steering_some_layers_leaves_the_others_fts(pair) -> None:
    """Norms are of a layer's input, so those of a range's first layer are of FT's stream still."""
    oracle, prompt = Oracle(*pair), tiny_models.prompts(2)[1][:20]
    (ft, _), (everywhere, hidden) = oracle.steer(prompt, 1.0), oracle.steer(prompt, 0.5)
    last = ft.shape[1] - 1
    whole, whole_hidden = oracle.steer(prompt, 0.5, (0, last))
    assert torch.equal(whole, everywhere)
    assert torch.equal(whole_hidden, hidden)
    norms, _ = oracle.steer(prompt, 0.5, (1, last - 1))
    alike = [torch.equal(norms[:, layer], ft[:, layer]) for layer in range(last + 1)]
    assert alike == [layer <= 1 for layer in range(last + 1)]
    norms, states = oracle.steer(prompt, 0.5, (last, last))
    assert torch.equal(norms, ft)
    assert not torch.equal(states, oracle.steer(prompt, 1.0)[1])
    assert torch.equal(oracle.steer(prompt, 1.0, (0, 1))[0], ft)


def test_an_empty_prompt_is_refused(pair) -> None:
    with pytest.raises(ValueError, match="empty"):
        Oracle(*pair).norms([[1, 2], []])


def small(config_cls: type, **fields: object) -> PreTrainedModel:
    """A random model of a family that the oracle need not know, with weights that make attention uneven."""
    config = config_cls(**{**tiny_models.SHAPE, "vocab_size": 64, "num_hidden_layers": 2, **fields})
    model = AutoModel.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(5)
    return model


@torch.inference_mode()
def test_soft_caps_are_kept(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 2's attention by hand, tanh and all: "sdpa" leaves it out and says nothing."""
    cap = 1.5
    torch.manual_seed(0)
    small(Gemma2Config, attn_logit_softcapping=cap, query_pre_attn_scalar=32).save_pretrained(tmp_path)
    oracle = Oracle(tmp_path, tmp_path)
    attention, seen = decoder_layers(oracle.ft)[0].self_attn, {}

    def keep(_: object, args: object, kwargs: dict, output: tuple) -> None:
        seen.update(kwargs, output=output[0])

    attention.register_forward_hook(keep, with_kwargs=True)
    oracle.norms([list(range(3, 23))])
    x_TH, (cos, sin) = seen["hidden_states"][0], seen["position_embeddings"]
    query, key, value = (
        project(x_TH).view(len(x_TH), -1, attention.head_dim).transpose(0, 1)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    query, key = (part[0] for part in apply_rotary_pos_emb(query[None], key[None], cos, sin))
    key, value = (part.repeat_interleave(attention.num_key_value_groups, dim=0) for part in (key, value))
    logits = query @ key.transpose(1, 2) / 32**0.5
    assert logits.abs().max() > 2 * cap, "nothing to cap: this tests nothing"
    future = torch.ones(len(x_TH), len(x_TH), dtype=torch.bool).triu(1)
    weights = (cap * torch.tanh(logits / cap)).masked_fill(future, float("-inf")).softmax(dim=-1)
    by_hand = attention.o_proj((weights @ value).transpose(0, 1).flatten(1))
    assert (seen["output"][0] - by_hand).abs().max() < 1e-12 * by_hand.abs().max()


def test_experts_run_in_float64(tmp_path) -> None:
    torch.manual_seed(0)
    small(Qwen3MoeConfig, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32).save_pretrained(
        tmp_path
    )
    norms = Oracle(tmp_path, tmp_path).norms([list(range(3, 23))])
    assert norms.dtype == torch.float64
    assert norms[..., 0].min() > 0
    assert norms[..., 1].max() == 0
