"""README's code blocks: what is to be run, and what it says is printed.

    console   `$ command`, and below it what that prints on stdout
    python    a script; a `text` block right behind it is what it prints
    ```       other languages are not run

`...` stands for what differs by machine. A comment before a block says what is special about it:
`<!-- not run: why -->`, or `<!-- serves: ... -->` of a command that runs until it is stopped.
"""

import re
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"

RUN, SHOWN = ("console", "python"), ("text", "bibtex")

_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```(?P<kind>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
_TITLE = re.compile(r"^(?:#+ (.*)|\*\*(.*)\*\*)$", re.MULTILINE)
_DECIMAL = re.compile(r"(?<![\w.])\d+\.\d+(?![\w.]*\w)")


@dataclass
class Command:
    """A command, and what README has below it."""

    text: str
    printed: str = ""


@dataclass
class Block:
    """One block that is to be run."""

    name: str
    """The heading that it stands under, and its place there."""
    kind: str
    commands: list[Command] = field(default_factory=list)
    """Of a script one."""
    skipped: str | None = None
    """Why it is not run."""
    serves: bool = False


def blocks_of(text: str) -> list[Block]:
    """The blocks to be run, in order. ValueError for a block that this file does not tell how to take."""
    blocks: list[Block] = []
    for found in _BLOCK.finditer(text):
        kind, mark, code = found["kind"], found["mark"] or "", found["code"]
        if kind in SHOWN:
            if kind == "text":
                if not blocks or blocks[-1].kind != "python" or blocks[-1].commands[0].printed:
                    raise ValueError(f"no script prints this: {code!r}")
                blocks[-1].commands[0].printed = code
            continue
        if kind not in RUN:
            raise ValueError(f"a block of the kind {kind!r}: {code!r}")
        title = [a or b for a, b in _TITLE.findall(text[: found.start()])][-1]
        name = f"{title} {1 + sum(block.name.startswith(title + ' ') for block in blocks)}"
        block = Block(name, kind, commands_of(code) if kind == "console" else [Command(code)])
        block.serves = mark.startswith("serves: ")
        if mark.startswith("not run: "):
            block.skipped = mark.removeprefix("not run: ")
        elif mark and not block.serves:
            raise ValueError(f"a comment that says nothing to the test: {mark}")
        blocks.append(block)
    return blocks


def commands_of(code: str) -> list[Command]:
    """A terminal's lines: commands and what they print."""
    commands: list[Command] = []
    for line in code.splitlines(keepends=True):
        if line.startswith("$ "):
            commands.append(Command(line[2:].rstrip("\n")))
        elif not commands:
            raise ValueError(f"output without a command: {line!r}")
        else:
            commands[-1].printed += line
    return commands


def difference(printed: str, stated: str, tolerance: float) -> str | None:
    """In what a command's output is not what README states, or None.

    `...` stands for anything, over lines too; decimals may differ by ``tolerance``.
    """
    printed, stated = (_stripped(each) for each in (printed, stated))
    pieces = [re.escape(piece) for piece in _DECIMAL.sub("\0", stated).split("...")]
    pattern = ".*?".join(pieces).replace("\0", r"(\d+\.\d+)")
    found = re.fullmatch(pattern, printed, re.DOTALL)
    if found is None:
        lines = zip_longest(stated.splitlines(), printed.splitlines(), fillvalue="(nothing)")
        return "\n".join(f"README: {a}\n   was: {b}" for a, b in lines if a != b)
    for number, was in zip(_DECIMAL.findall(stated), found.groups(), strict=True):
        if abs(float(number) - float(was)) > tolerance:
            return f"README: {number}\n   was: {was}\nin\n{printed}"
    return None


def _stripped(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())
