"""Damage to what a JSON document says, its text being valid."""

import copy
from collections.abc import Iterator
from random import Random
from typing import Any

from fuzzed.mutations import Damaged

VALUES = (None, True, False, 0, 1, -1, 2, 7, 10**12, 10**400, 0.5, -0.0, float("nan"), float("inf"), "", "7", "text")
VALUES += ([], [1], {}, {"a": 1}, [[]], "\ud800", "\x00", "../up", "/etc/passwd")


def damage(random: Random, valid: dict[str, Any]) -> Damaged[dict[str, Any]]:
    """A document with a key renamed, removed, added or given another value, at any depth."""
    document = copy.deepcopy(valid)
    holder, key = random.choice(list(_places(document)))
    match random.choice(("rename", "remove", "value", "value", "value", "add")):
        case "rename" if isinstance(holder, dict):
            at = random.randrange(len(key) + 1)
            new = key[:at] + random.choice("x_1") + key[at:]
            holder[new] = holder.pop(key)
            return Damaged(f"{key} is {new}", document)
        case "remove":
            del holder[key]
            return Damaged(f"without {key}", document)
        case "add" if isinstance(holder, dict):
            holder["another"] = random.choice(VALUES)
            return Damaged(f"'another' beside {key}", document)
    holder[key] = random.choice(VALUES)
    return Damaged(f"{key} is {str(holder[key])[:30]!r}", document)


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a document; of long lists and tables of words the first few."""
    if isinstance(document, dict | list):
        keys = list(document) if isinstance(document, dict) else list(range(len(document)))
        for key in keys[:40]:
            yield document, key
            yield from _places(document[key])
