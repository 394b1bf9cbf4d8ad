"""The oracle's own identities: everything else is measured against it, so it is tested against the maths."""

import pytest
import tiny_models
import tolerances
import torch
from transformers import AutoModel

from tuco_vllm.decomposition import l1_norms
from tuco_vllm.oracle import Oracle, decoder_layers

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
    norm = decoder_layers(oracle.ft)[0].input_layernorm
    x = torch.randn(1, tiny_models.SHAPE["hidden_size"], dtype=torch.float64)
    exact = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon) * norm.weight
    assert (norm(x) - exact).abs().max() > 1e-9


def test_batching_changes_nothing(pair) -> None:
    oracle, prompts = Oracle(*pair), tiny_models.prompts(6)
    together, alone = oracle.norms(prompts), torch.cat([oracle.norms([p]) for p in prompts])
    assert ((together - alone).abs() / alone).max() < tolerances.ORACLE_FLOAT64


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
        return l1_norms(*vectors)

    monkeypatch.setattr("tuco_vllm.oracle.l1_norms", keep)
    oracle.norms([prompt])
    stream: list[torch.Tensor] = []
    plain = AutoModel.from_pretrained(pair[1], dtype=torch.float64)
    decoder_layers(plain)[-1].register_forward_hook(
        lambda _, __, out: stream.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.inference_mode():
        ids = torch.tensor([prompt])
        plain(ids, use_cache=False)
        x0 = plain.get_input_embeddings()(ids)[0, -1]
    total = x0 + sums["ptc"][0] + sums["ftc"][0]
    # Plain FT runs its norms in float32 here, so the comparison is to float32.
    assert (total - stream[0].reshape(-1, total.shape[-1])[-1]).abs().sum() < 1e-5 * total.abs().sum()


def test_an_empty_prompt_is_refused(pair) -> None:
    with pytest.raises(ValueError, match="empty"):
        Oracle(*pair).norms([[1, 2], []])
