"""An object with its parameters as one text of a command: `ZBH1`, `Interleaved(chunks_per_stage=3)`.

The form is that of a value of `--set`. The text is parsed, never evaluated.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtrain.cli.config_imports import Imports
from jaxtrain.cli.config_object import Reader
from jaxtrain.cli.config_place import nodes
from jaxtrain.cli.config_tree import Node, Slot, build
from jaxtrain.record.literal import shorten
from jaxtrain.record.walk import config_fields


def one_object(
    text: str, kind: type, key: str, *, examples: str, import_from: Sequence[str | Path] = ()
) -> Any:  # of the kind, which may be abstract
    """Build the object of a base class that the text names, with the given parameters and defaults for the others.

    Raises:
        ValueError: there is no such class or parameter, or a value is of the wrong type or out of range.
    """
    text, origin = text.strip(), f"`{shorten(text.strip())}`"
    try:
        tree = Reader(Imports(import_from), origin).read(text, Slot(key, kind), [kind])
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error
    if not isinstance(tree, Node):
        raise ValueError(f"{origin} is no {key}; write {examples}")
    for at, node in nodes(tree, key):
        for missing in required(node):
            raise ValueError(f"{origin}: {at}={node.cls.__name__} needs `{missing}`; write {missing}=...")
    return build(tree, {})  # `read` has checked that the node fits its slot


def required(node: Node) -> list[str]:
    """Return the parameters that have no default and were not given."""
    return [name for name in config_fields(node.cls) if name not in node.children]
