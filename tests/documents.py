"""Files and commands that the documents print, as they are printed.

A file is a fenced block that begins with a comment of its name. Commands are lines of ```sh blocks, of other fenced
blocks and of indented ones that begin with `jaxtrain`, behind `uv run` and settings of the environment. A block of sh
whose first line is a comment with one of MARKS is not run as it is.
"""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"# (\w+\.\w+)\n")
MARKS = ("needs", "takes", "refused")
COMMAND = re.compile(r"(?:\S+=\S+ +)*(?:uv run .*?)?(jaxtrain [a-z-]+.*)")


class Block(NamedTuple):
    """The lines of a block of sh, and why it is not run as it is, or ''."""

    lines: tuple[str, ...]
    mark: str


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def files(document: str) -> dict[str, str]:
    """Return the examples of a document that are whole files, by their names."""
    return {named[1]: content for _, content in FENCE.findall(document) if (named := NAME.match(content))}


def blocks(document: str) -> list[Block]:
    """Return the blocks of sh of a document."""
    found = []
    for language, content in FENCE.findall(document):
        if language == "sh":
            first, *rest = content.splitlines()
            mark = next((mark for mark in MARKS if first.startswith(f"# {mark}")), "")
            found.append(Block(tuple(rest if mark else [first, *rest]), mark))
    return found


def commands(document: str) -> list[list[str]]:
    """Return the words of every `jaxtrain` command that a document prints in a block, without the first."""
    indented = re.findall(r"^ {4}(.*)$", FENCE.sub("", document).replace("\\\n", ""), re.MULTILINE)
    fenced = [line for _, content in FENCE.findall(document) for line in content.replace("\\\n", "").splitlines()]
    parts = [part.strip() for line in indented + fenced for part in line.split("&&")]
    return [shlex.split(found[1], comments=True)[1:] for part in parts if (found := COMMAND.fullmatch(part))]
