"""`--set path=value`: changes to the tree of a configuration, by path.

    model.d_model=512    phases[0].steps=100    optimizer=@Lion()    optimizer=@jaxtrain.optim.lion.Lion(b1=0.95)
    phases[1]='@Phase(steps=100, ...)'    (another entry, where there was one)

A value is written as config_object.py reads it.
"""

from typing import get_type_hints

from jaxtrain.cli.config_imports import Imports
from jaxtrain.cli.config_object import Reader
from jaxtrain.cli.config_place import ORIGIN, Place, find_place
from jaxtrain.cli.config_tree import Items, Leaf, Node, Slot, Tree
from jaxtrain.cli.config_types import classes_in, describe_hint, fits
from jaxtrain.record.literal import shorten
from jaxtrain.record.walk import config_fields, join


def apply_override(root: Node, override: str, imports: Imports) -> None:
    """Set one `path=value` in the tree.

    Raises:
        ValueError: there is no such path (with the nearest valid name), the value cannot be read, or the result of a
            call in it is not known to fit its key.
    """
    path, equals, text = (part.strip() for part in override.partition("="))
    try:
        if not equals or not path:
            raise ValueError("write it as path=value")
        place = find_place(root, path)
        near = [*classes_in(place.hint), *_classes(place.now)]
        tree = Reader(imports, ORIGIN).read(text, Slot(place.at, place.hint), near)
        _check_not_for_a_key_below(tree, place)
        place.put(tree)
    except ValueError as error:
        raise ValueError(f"{ORIGIN} {shorten(override)}: {error}") from error


def _check_not_for_a_key_below(tree: Tree, place: Place) -> None:
    """Raise ValueError for a plain value that does not fit a key but fits a key below it, and name that one."""
    node = place.now
    if not isinstance(tree, Leaf) or not isinstance(node, Node) or fits(tree.value, place.hint):
        return
    hints = get_type_hints(node.cls)
    if below := [name for name in config_fields(node.cls) if fits(tree.value, hints[name])]:
        wrong = f"must be {describe_hint(place.hint)}, not {type(tree.value).__name__}"
        raise ValueError(f"{wrong}; a key below it that takes such a value is {join(place.at, below[0])}")


def _classes(tree: Tree | None) -> list[type]:
    nodes = tree.children if isinstance(tree, Items) else [tree]
    return [node.cls for node in nodes if isinstance(node, Node)]
