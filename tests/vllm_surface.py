"""What vLLM has of the private surface that ``engine/compat.py`` lists, and what another version changes.

    python tests/vllm_surface.py NEW [OLD]

NEW and OLD (without it, the installed one) are folders that hold an unpacked ``vllm/``: of a wheel, an sdist
or a checkout. Nothing is imported, so neither needs to be installed, or to fit this machine. Exit code 1 if
NEW lacks something.
"""

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple

COMPAT = Path(__file__).parents[1] / "tuco_vllm" / "engine" / "compat.py"

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign | ast.Module


class Surface(NamedTuple):
    """One entry of the ledger."""

    name: str
    """``Name`` or ``Name.member``, Name as compat has it or with its module; or ``module reads name``."""
    places: tuple[str, ...] = ()
    """Parameters that a caller of ours passes, or an override of ours takes, by their place."""
    keywords: tuple[str, ...] = ()
    """Parameters that are passed by name."""
    called: bool = False
    """Whether the ledger gives a signature."""


class Found(NamedTuple):
    """Where a version has a surface, and what it is there."""

    file: str
    node: Definition


def ledger(source: str) -> list[Surface]:
    """The entries of compat's docstring, in its order."""
    text = ast.get_docstring(ast.parse(source), clean=True) or ""
    _, _, text = text.partition("\n----------\n")
    blocks = re.findall(r"(?:^    .*\n?)+", text, re.MULTILINE)
    surfaces, owner = [], ""
    for entry in (e for block in blocks for e in re.split(r",\s+(?![^(]*\))", block.strip())):
        name, called, signature = entry.partition("(")
        if name.startswith("."):
            name = owner + name
        elif "." in name and " " not in name:
            owner = name.rpartition(".")[0]
        else:
            owner = name
        given = [part.strip() for part in signature.removesuffix(")").split(",") if part.strip()]
        keywords = tuple(part.removesuffix("=") for part in given if part.endswith("="))
        surfaces.append(Surface(name, tuple(p for p in given if p[-1] != "="), keywords, bool(called)))
    return surfaces


def imported(source: str) -> dict[str, list[tuple[str, ...]]]:
    """compat's names -> where vLLM has them: of each tuple one place is enough."""
    names: dict[str, list[tuple[str, ...]]] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vllm":
            for alias in node.names:
                names[alias.asname or alias.name] = [(f"{node.module}.{alias.name}",)]
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                found = [n.value for n in ast.walk(value) if isinstance(n, ast.Constant)]
                places = [place for place in found if str(place).startswith("vllm.")]
                if isinstance(key, ast.Constant) and places:
                    # A tuple is of versions, one of which is here; a condition is of platforms.
                    one = isinstance(value, ast.Tuple)
                    names[key.value] = [tuple(places)] if one else [(place,) for place in places]
    return names


class Version:
    """One version's sources, as syntax trees."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.module = cache(self._module)

    @classmethod
    def installed(cls) -> "Version":
        spec = importlib.util.find_spec("vllm")
        assert spec is not None
        assert spec.origin is not None
        return cls(Path(spec.origin).parents[1])

    def find(self, dotted: str) -> Found | None:
        """What ``module.name`` or ``module.Class.member`` names; of ``module reads name`` the module."""
        module, _, read = dotted.partition(" reads ")
        if read:
            tree, file = self.module(module), self._file(module)
            reads = tree and any(read in (vars(n).get("attr"), vars(n).get("value")) for n in ast.walk(tree))
            return Found(str(file), tree) if tree and reads else None
        parts = dotted.split(".")
        for end in range(len(parts) - 1, 0, -1):
            if self._file(".".join(parts[:end])) is not None:
                found = self.name(".".join(parts[:end]), parts[end])
                for member in parts[end + 1 :]:
                    found = self.member(found, member) if found is not None else None
                return found
        return None

    def name(self, module: str, name: str, depth: int = 0) -> Found | None:
        """A module's name, through whatever modules pass it on."""
        tree, file = self.module(module), self._file(module)
        if tree is None or file is None or depth > 8:
            return None
        for node in _statements(tree):
            if _binds(node, name):
                return Found(str(file.relative_to(self.root)), node)
            if isinstance(node, ast.ImportFrom):
                source = self._source(module, node)
                for alias in node.names:
                    if alias.name == "*" or (alias.asname or alias.name) == name:
                        wanted = name if alias.name == "*" else alias.name
                        found = self.name(source, wanted, depth + 1)
                        if found is not None:
                            return found
        return None

    def member(self, found: Found, name: str) -> Found | None:
        """What a class, or one that it is made from, has under ``name``: in its body, or set on ``self``."""
        if not isinstance(found.node, ast.ClassDef):
            return None
        for node in found.node.body:
            if _binds(node, name):
                return Found(found.file, node)
        for node in ast.walk(found.node):
            if isinstance(node, ast.Assign | ast.AnnAssign) and f"self.{name}" in _targets(node):
                return Found(found.file, node)
        module = found.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for base in found.node.bases:
            parent = self.name(module, ast.unparse(base).partition("[")[0])
            if parent is not None and (inherited := self.member(parent, name)) is not None:
                return inherited
        return None

    def _file(self, module: str) -> Path | None:
        path = self.root.joinpath(*module.split("."))
        return next((f for f in (path.with_suffix(".py"), path / "__init__.py") if f.is_file()), None)

    def _module(self, module: str) -> ast.Module | None:
        file = self._file(module)
        return None if file is None else ast.parse(file.read_text())

    def _source(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        file = self._file(module)
        parts = module.split(".")
        up = node.level - (file is not None and file.name == "__init__.py")
        return ".".join([*parts[: len(parts) - up], *([node.module] if node.module else [])])


def places_of(surface: Surface, names: dict[str, list[tuple[str, ...]]]) -> list[tuple[str, ...]]:
    """Where a surface may be: of each tuple one place is enough."""
    if surface.name.startswith("vllm."):
        return [(surface.name,)]
    name, _, member = surface.name.partition(".")
    return [tuple(f"{p}.{member}".removesuffix(".") for p in places) for places in names[name]]


def complaint(surface: Surface, found: Found | None, version: Version) -> str | None:
    """What keeps our code from using ``found`` as ``surface`` says, or None."""
    if found is None:
        return "is not there"
    if not surface.called:
        return None
    signature = signature_of(found, version)
    if signature is None:
        return "has no signature"
    names = [arg.arg for arg in (*signature.posonlyargs, *signature.args)]
    if tuple(names[: len(surface.places)]) != surface.places:
        return f"takes ({', '.join(names)}), not ({', '.join(surface.places)})"
    missing = set(surface.keywords) - {arg.arg for arg in signature.kwonlyargs} - set(names)
    return f"has no {', '.join(sorted(missing))}" if missing else None


def signature_of(found: Found, version: Version) -> ast.arguments | None:
    """What a function takes, or the call of a class, without ``self``."""
    node = found.node
    if isinstance(node, ast.ClassDef):
        init = version.member(found, "__init__")
        if init is not None:
            return signature_of(init, version)
        fields = [
            n.target.id for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
        ]
        return ast.arguments([], [ast.arg(name) for name in fields], None, [], [], None, [])
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return None
    args = node.args
    bound = bool(args.args) and args.args[0].arg in ("self", "cls")
    return ast.arguments(**{**dict(ast.iter_fields(args)), "args": args.args[bound:]})


def complaints(version: Version, source: str) -> list[str]:
    """All that a version lacks of the surface that ``source``, compat's text, lists."""
    names, lines = imported(source), []
    for surface in ledger(source):
        for places in places_of(surface, names):
            found = next(filter(None, map(version.find, places)), None)
            if (said := complaint(surface, found, version)) is not None:
                lines.append(f"{' or '.join(places)} {said}")
    return lines


def changes(old: Version, new: Version, source: str) -> Iterator[str]:
    """What differs of the surface between two versions; reading it is the work of an upgrade."""
    names = imported(source)
    for surface in ledger(source):
        for places in places_of(surface, names):
            a, b = (next(filter(None, map(version.find, places)), None) for version in (old, new))
            if a is None or b is None:
                if a is not b:
                    yield f"{'NEW ' if a is None else 'GONE'}  {surface.name}"
                continue
            if a.file != b.file and not isinstance(a.node, ast.Module):
                yield f"moved {surface.name}: {a.file} -> {b.file}"
            if (said := _difference(a, b, old, new)) is not None:
                yield f"{said[0]:5} {surface.name}{said[1]}"


def _difference(a: Found, b: Found, old: Version, new: Version) -> tuple[str, str] | None:
    before, after = _code(a.node), _code(b.node)
    if before == after or isinstance(a.node, ast.Module):
        return None
    if isinstance(a.node, ast.Assign | ast.AnnAssign):
        return "VALUE", f": {shorten(before, 100)} -> {shorten(after, 100)}"
    shapes = [s and ast.unparse(s) for s in (signature_of(a, old), signature_of(b, new))]
    if shapes[0] != shapes[1]:
        return "TAKES", f": ({shapes[0]}) -> ({shapes[1]})"
    return "body", ""


def _code(node: Definition) -> str:
    """Its text without comments and docstrings."""
    tree = ast.parse(ast.unparse(node))
    for inner in ast.walk(tree):
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and ast.get_docstring(
            inner
        ):
            inner.body = inner.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """A module's statements, those under ``if`` and ``try`` too."""
    queue: list[ast.AST] = list(tree.body)
    while queue:
        node = queue.pop(0)
        if isinstance(node, ast.stmt):
            yield node
        if isinstance(node, ast.If | ast.Try | ast.ExceptHandler):
            queue += list(ast.iter_child_nodes(node))


def _targets(node: ast.Assign | ast.AnnAssign) -> Iterator[str]:
    """``a``, ``self.b`` and ``c`` of ``a = self.b, c = ...``."""
    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
        yield from map(ast.unparse, target.elts if isinstance(target, ast.Tuple) else [target])


def _binds(node: ast.AST, name: str) -> bool:
    if isinstance(node, ast.Assign | ast.AnnAssign):
        return name in _targets(node)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return node.name == name and "overload" not in map(ast.unparse, node.decorator_list)
    return False


def main(new: str, old: str | None = None) -> int:
    """Print what NEW lacks, then what it changes."""
    source = COMPAT.read_text()
    ours, theirs = Version(Path(old)) if old else Version.installed(), Version(Path(new))
    print(f"{ours.root} -> {theirs.root}: {len(ledger(source))} entries of the ledger")
    for line in changes(ours, theirs, source):
        print(line)
    lacks = complaints(theirs, source)
    for line in lacks:
        print(f"LACKS {line}")
    return bool(lacks)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
