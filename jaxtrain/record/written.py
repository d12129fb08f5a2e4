"""What a config.gin says that `render` has written, read without gin: enough to tell it from another one."""

import re

from jaxtrain.record.text import Difference
from jaxtrain.record.walk import join

_REFERENCE = re.compile(r"@(?:\w+/)*([\w.]+\(\))")  # the scope before the last / only tells instances apart
_REFERENCES = re.compile(rf"\((?:{_REFERENCE.pattern}(?:, |,)?)+\)")


def written_differences(left: str, right: str) -> list[Difference]:
    """Return the keys in which two texts differ; the imports where only the module of a class does.

    A key that one of them lacks differs, although its default may be the other's value.
    """
    if left == right:
        return []
    a, b = written_values(left), written_values(right)
    changed = [Difference(path, a.get(path), b.get(path)) for path in a | b if a.get(path) != b.get(path)]
    return changed or [Difference("the text of config.gin", *map(_imports, (left, right)))]


def written_values(text: str) -> dict[str, str]:
    """Return the values by the paths of their keys, as they are written; without the scopes of classes."""
    found: dict[str, str] = {}
    path = ""
    for line in text.splitlines():
        if not line:
            path = ""  # the block of the root names no path
        elif line.startswith("# "):
            path = line[2:]
        elif line.startswith("  "):
            name, _, value = line.strip().partition(" = ")
            found |= _entries(join(path, name), value)
    return found


def _entries(path: str, value: str) -> dict[str, str]:
    if _REFERENCES.fullmatch(value):
        return {join(path, index): f"@{name}" for index, name in enumerate(_REFERENCE.findall(value))}
    reference = _REFERENCE.fullmatch(value)
    return {path: f"@{reference[1]}" if reference else value}


def _imports(text: str) -> str:
    return ", ".join(line for line in text.splitlines() if line.startswith(("from ", "import ")))
