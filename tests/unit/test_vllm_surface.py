"""The installed vLLM has the private surface that compat's ledger lists; the tool that says so can tell."""

import pytest
import vllm_surface
from vllm_surface import Surface, Version, changes, complaints, imported, ledger

SOURCE = vllm_surface.COMPAT.read_text()


def test_the_installed_vllm_has_all_of_it():
    assert not complaints(Version.installed(), SOURCE)


def test_every_name_of_compat_is_in_the_ledger():
    listed = {surface.name.partition(".")[0] for surface in ledger(SOURCE)}
    assert set(imported(SOURCE)) <= listed


def test_what_python_finds_the_tool_finds():
    """compat's names by import, where the tool has only read."""
    from tuco_vllm.engine import compat

    for name, (places, *_) in imported(SOURCE).items():
        found = next(filter(None, map(Version.installed().find, places)))
        assert getattr(compat, name) is not None
        assert found.file.startswith("vllm/"), name


COMPAT = '''"""A file.

The ledger
----------
engine.py: why. Until: when.
    Engine(size, seed=), Engine.step(tokens), .queue, .finish(name,
    reason), vllm.old.Old.gone
more.py: why else, in
two lines. Until: never.
    moved, vllm.base reads alias, vllm.base reads by_name
"""

from vllm.engine import Engine

_PLACES = {"moved": ("vllm.new.moved", "vllm.engine.moved")}
'''

OLD = {
    "engine.py": '''
from vllm.base import *

class Engine(Base):
    def __init__(self, size, *, seed=0):
        """Words."""
        self.queue: list[int] = []

    def step(self, tokens):
        return tokens

@overload
def moved(a): ...
if True:
    def moved(b): ...
''',
    "base.py": """
class Base:
    def finish(self, name, reason=None, **more):
        return name.alias, getattr(name, "by_name", None)
""",
    "old.py": "class Old:\n    def m(self):\n        self.first, self.gone = 1, 2",
}


@pytest.fixture
def version(tmp_path):
    def write(name: str, files: dict[str, str]) -> Version:
        for file, text in {"__init__.py": "", **files}.items():
            path = tmp_path / name / "vllm" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return Version(tmp_path / name)

    return write


def test_the_ledger_is_read():
    assert ledger(COMPAT) == [
        Surface("Engine", ("size",), ("seed",), True),
        Surface("Engine.step", ("tokens",), (), True),
        Surface("Engine.queue"),
        Surface("Engine.finish", ("name", "reason"), (), True),
        Surface("vllm.old.Old.gone"),
        Surface("moved"),
        Surface("vllm.base reads alias"),
        Surface("vllm.base reads by_name"),
    ]


def test_a_version_that_has_everything(version):
    old = version("old", OLD)
    assert complaints(old, COMPAT) == []
    assert list(changes(old, old, COMPAT)) == []


def test_a_version_that_has_not(version):
    engine = OLD["engine.py"]
    new = version(
        "new",
        {
            **OLD,
            "engine.py": engine.replace("seed=0", "rng=0").replace("step(self, ", "step(self, first, "),
            "base.py": OLD["base.py"].replace("name, reason=None", "reason, name").replace("by_name", "name"),
            "old.py": "class Old: ...",
        },
    )
    assert complaints(new, COMPAT) == [
        "vllm.engine.Engine has no seed",
        "vllm.engine.Engine.step takes (first, tokens), not (tokens)",
        "vllm.engine.Engine.finish takes (reason, name), not (name, reason)",
        "vllm.old.Old.gone is not there",
        "vllm.base reads by_name is not there",
    ]


def test_what_changed_is_said(version):
    engine = OLD["engine.py"].partition("@overload")[0]
    engine = engine.replace("list[int] = []", "dict[int, str] = {}").replace("Words.", "Other words.")
    engine = engine.replace("step(self, tokens)", "step(self, tokens, fast=True)")
    base = OLD["base.py"].replace("None)", "0)")
    new = version("new", {"engine.py": engine, "base.py": base, "new.py": "def moved(b): ..."})
    assert list(changes(version("old", OLD), new, COMPAT)) == [
        "body  Engine",
        "TAKES Engine.step: (tokens) -> (tokens, fast=True)",
        "VALUE Engine.queue: self.queue: list[int] = [] -> self.queue: dict[int, str] = {}",
        "body  Engine.finish",
        "GONE  vllm.old.Old.gone",
        "moved moved: vllm/engine.py -> vllm/new.py",
    ]
