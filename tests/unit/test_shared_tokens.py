"""Only a text of tokens that both models know, and know as the same, has a relative reward."""

import json
from types import SimpleNamespace

import pytest
import tiny_models

from tuco_vllm.errors import InputError
from tuco_vllm.prompt_checks import PromptError
from tuco_vllm.shared_tokens import SharedTokens


@pytest.fixture
def pair(tmp_path):
    ft, pt = tiny_models.tokenizer(), tiny_models.tokenizer()
    ft.add_tokens(["<|new|>"])
    pt.add_tokens(["<|other|>"])
    pt.save_pretrained(tmp_path / "pt")
    checkpoint = SimpleNamespace(directory=tmp_path / "pt", config={"vocab_size": len(pt) + 9})
    return SimpleNamespace(pt=checkpoint), ft


def test_tokens_of_both(pair):
    SharedTokens(*pair).expect([3, 4], [5])


def test_a_token_that_is_another(pair):
    models, ft = pair
    new = ft.convert_tokens_to_ids("<|new|>")
    shared = SharedTokens(models, ft)
    for prompt, response in (([3, new], [4]), ([3], [4, new])):
        with pytest.raises(PromptError, match=rf"token <\|new\|> \({new}\) is not the same"):
            shared.expect(prompt, response)


def test_a_token_that_pt_does_not_embed(pair):
    models, ft = pair
    models.pt.config["vocab_size"] = 40
    with pytest.raises(PromptError, match=r"\(40\) is not the same"):
        SharedTokens(models, ft).expect([39, 40], [5])


def test_without_a_tokenizer_of_its_own_pt_has_ft_s(pair):
    models, ft = pair
    for path in models.pt.directory.iterdir():
        path.unlink()
    SharedTokens(models, ft).expect([3], [ft.convert_tokens_to_ids("<|new|>")])


def test_a_tokenizer_that_does_not_load_is_named(pair):
    models, ft = pair
    (models.pt.directory / "tokenizer.json").write_text(json.dumps({"not": "one"}))
    with pytest.raises(InputError, match="cannot load a tokenizer from"):
        SharedTokens(models, ft).expect([3], [4])
