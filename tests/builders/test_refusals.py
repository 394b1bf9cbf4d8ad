"""What counts as a refusal."""

import pytest

from tuco_vllm.builders.refusals import STRINGS, is_refusal


@pytest.mark.parametrize("string", STRINGS)
def test_each_string_anywhere(string):
    assert is_refusal(string)
    assert is_refusal(f"Well. {string} and so on")


@pytest.mark.parametrize("apostrophe", ["'", "’", "‘", "ʼ"])
def test_apostrophes_of_all_shapes(apostrophe):
    assert is_refusal(f"I{apostrophe}m unable to say, and I can{apostrophe}t.")


@pytest.mark.parametrize(
    "answer", ["", "Sure! Here is how.", "As an example, take bread.", "sorry", "He can't.", "Illegal? No."]
)
def test_no_refusal(answer):
    assert not is_refusal(answer)
