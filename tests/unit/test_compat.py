"""vLLM's private names: found where either version has them, loudly missed where neither does."""

import runpy
import sys
from types import ModuleType

import pytest
import vllm

from tuco_vllm.engine import compat


@pytest.fixture
def places(monkeypatch):
    """Sets the places of a lazy name, in modules that this test makes."""
    new, old = ModuleType("vllm.new_place"), ModuleType("vllm.old_place")
    old.name = "old"

    def put(*where: str) -> None:
        monkeypatch.setitem(compat._LAZY, "a_name", tuple(f"vllm.{place}.name" for place in where))

    monkeypatch.setitem(sys.modules, "vllm.new_place", new)
    monkeypatch.setitem(sys.modules, "vllm.old_place", old)
    return put, new


def test_a_name_that_moved_is_found_in_both_places(places):
    put, new = places
    for first in ("new_place", "nowhere", "nowhere.at_all"):  # without the name, without its module
        put(first, "old_place")
        assert compat.a_name == "old"
    put("new_place", "old_place")
    new.name = "new"
    assert compat.a_name == "new"


def test_a_name_in_neither_is_an_error_that_says_so(places):
    put, _ = places
    put("new_place", "nowhere")
    with pytest.raises(ImportError, match=r"has no vllm\.new_place\.name nor vllm\.nowhere\.name"):
        _ = compat.a_name
    with pytest.raises(AttributeError, match="no attribute another"):
        _ = compat.another


def test_a_place_that_lacks_a_package_of_its_own_is_not_passed_over(places, tmp_path, monkeypatch):
    put, _ = places
    (tmp_path / "needy.py").write_text("import a_package_that_nobody_has")
    monkeypatch.setattr(vllm, "__path__", [*vllm.__path__, str(tmp_path)])
    put("needy", "old_place")
    with pytest.raises(ModuleNotFoundError, match="a_package_that_nobody_has"):
        _ = compat.a_name


@pytest.mark.parametrize("number", ["0.31.1", "0.34.0", "0.3.2", "1.0.0"])
def test_other_versions_are_refused(monkeypatch, number):
    monkeypatch.setattr(vllm, "__version__", number)
    with pytest.raises(ImportError, match=rf"supports vLLM 0\.32\.x and 0\.33\.x, this is {number}: install"):
        runpy.run_path(compat.__file__)


@pytest.mark.parametrize("number", ["0.32.1", "0.33.0", "0.33.1+cu130"])
def test_both_versions_are_taken(monkeypatch, number):
    monkeypatch.setattr(vllm, "__version__", number)
    assert runpy.run_path(compat.__file__)["vllm"] is vllm
