"""The grid of a sweep: keys with the values they take, the points of their product, and the names of these."""

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtrain.cli.config_literal import check_text, number
from jaxtrain.cli.config_place import ORIGIN
from jaxtrain.record.literal import shorten

FLAG = "--grid"
LONGEST_NAME = 100  # most characters of a folder's name; a longer one ends in a digest
_CLOSING = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True, slots=True)
class Axis:
    """A key, the last parts of it that tell it from the other keys of the grid, and its values as they are written."""

    key: str
    label: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """One value for each axis, and the name of its run folder."""

    name: str
    values: tuple[str, ...]
    overrides: tuple[str, ...]


def read_axes(grids: Sequence[str], sets: Sequence[str]) -> tuple[Axis, ...]:
    """Return the axes of `key=value,value` texts. No key may be in two of them or in the changes `sets`.

    Raises:
        ValueError: with the text that is wrong.
    """
    split = [_key_and_values(grid) for grid in grids]
    keys = [key for key, _ in split]
    for index, key in enumerate(keys):
        if key in keys[:index]:
            raise ValueError(f"{FLAG} {key}: stands twice; write all its values in one {FLAG} {key}=A,B")
        if key in {dotted(text.partition("=")[0].strip()) for text in sets}:
            raise ValueError(f"{FLAG} {key}: is also changed by {ORIGIN}; leave one of them out")
    return tuple(Axis(key, _label(key, keys), values) for key, values in split)


def points(axes: Sequence[Axis]) -> list[Point]:
    """Return all combinations of values. The values of the last axis change fastest."""
    return [
        Point(
            name=_folder_name(",".join(f"{axis.label}={value}" for axis, value in zip(axes, values, strict=True))),
            values=values,
            overrides=tuple(f"{axis.key}={value}" for axis, value in zip(axes, values, strict=True)),
        )
        for values in itertools.product(*(axis.values for axis in axes))
    ]


def _key_and_values(grid: str) -> tuple[str, tuple[str, ...]]:
    check_text(grid)
    key, equals, text = (part.strip() for part in grid.partition("="))
    key = dotted(key)
    if not equals or not key:
        raise ValueError(f"{FLAG} {shorten(grid)}: write it as key=value,value")
    values = tuple(_plain(value) for value in _at_commas(text))
    if "" in values:
        raise ValueError(f"{FLAG} {shorten(grid)}: one of its values is empty; write an empty text as ''")
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ValueError(f"{FLAG} {shorten(grid)}: has the value {shorten(value)} twice; leave one out")
    return key, values


def dotted(key: str) -> str:
    """Return `phases[0].steps` as `phases.0.steps`."""
    return re.sub(r"\[(\d+)\]", r".\1", key)


def _at_commas(text: str) -> list[str]:
    """Split a text at the commas that stand in no brackets and no quotes."""
    parts, escaped = [""], False
    waiting: list[str] = []  # the letters that close what is open, innermost last
    for letter in text:
        quoted = bool(waiting) and waiting[-1] in "'\""
        if letter == "," and not waiting:
            parts.append("")
        else:
            parts[-1] += letter
        if waiting and letter == waiting[-1] and not escaped:
            waiting.pop()
        elif not quoted and letter in "'\"":
            waiting.append(letter)
        elif not quoted and letter in _CLOSING:
            waiting.append(_CLOSING[letter])
        escaped = quoted and letter == "\\" and not escaped
    if waiting:
        raise ValueError(f"{FLAG} {shorten(text)}: a {waiting[-1]} is missing; write a text with brackets in quotes")
    return [part.strip() for part in parts]


def _plain(value: str) -> str:
    """Return a number as Python writes it, so that 1e-3 and 0.001 are one run; any other text is unchanged."""
    try:
        return repr(number(value)) if not re.fullmatch(r"[+-]?\d*", value) else value
    except ValueError:
        return value


def _label(key: str, keys: Sequence[str]) -> str:
    """Return the last parts of a key that no other key ends in."""
    parts = key.split(".")
    endings = (".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1))
    return next((ending for ending in endings if [k for k in keys if f".{k}".endswith(f".{ending}")] == [key]), key)


def _folder_name(text: str) -> str:
    """Return a text as a folder's name. Where letters are replaced or left out, it ends in a digest of the text."""
    plain = re.sub(r"[^\w.,=+-]", "_", text, flags=re.ASCII)
    if plain == text and len(text) <= LONGEST_NAME:
        return text
    return f"{plain[: LONGEST_NAME - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
