"""Whether a shard of the parity product must run again: all code that its tests import counts."""

import ast
from pathlib import Path

import full_product

ROOT = full_product.ROOT
BEGIN = ("tests/parity/test_oracle_parity.py", "tests/parity/conftest.py", "tests/conftest.py")


def imported(begin):
    """All files of ours that these import, directly or not, anywhere in them."""
    found, queue = set(), [ROOT / name for name in begin]
    while queue:
        path = queue.pop()
        if path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                queue += filter(None, (file_of(alias.name) for alias in node.names))
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                queue += filter(None, map(file_of, names))
    return {path.relative_to(ROOT) for path in found}


def file_of(module):
    for top in (ROOT, ROOT / "tests", ROOT / "kernels"):
        place = top.joinpath(*module.split("."))
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.is_file():
                return path
    return None


def test_what_a_cell_imports_counts():
    files = imported(BEGIN)
    assert Path("tuco_vllm/engine/scorer.py") in files
    apart = [Path(name) for name in full_product.NO_CELLS]
    assert not [file for file in files for place in apart if place in (file, *file.parents)]


def test_what_is_left_out_is_there():
    assert all("*" in name or (ROOT / name).exists() for name in full_product.NO_CELLS)
