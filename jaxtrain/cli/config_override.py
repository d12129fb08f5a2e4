"""`--set path=value`: changes to the tree of a configuration, by path.

    model.d_model=512    phases[0].steps=100    optimizer=@Lion()    optimizer=@jaxtrain.optim.lion.Lion(b1=0.95)

A value is a Python literal, and a string where it is none. `@Name(key=value)` is a new node; a short name is looked up
in the modules beside the classes that the field has now or is annotated with, a full one anywhere.
"""

import argparse
import ast
import io
import re
import tokenize
from typing import get_type_hints

from jaxtrain.cli.config_imports import FLAG, Imports
from jaxtrain.cli.config_literal import check_text, expression, parsing, shorten
from jaxtrain.cli.config_place import ORIGIN, Place, find_place
from jaxtrain.cli.config_target import check_fits, find_target
from jaxtrain.cli.config_tree import (
    Items,
    Leaf,
    Node,
    Slot,
    Tree,
    check_field,
    config_fields,
    join,
    new_node,
    plant,
    sequence,
)
from jaxtrain.cli.config_types import classes_in, convert, describe_hint, label


def add_set_argument(parser: argparse.ArgumentParser) -> None:
    """Give a command that loads a configuration `--set` and `--import-from`; their values are lists."""
    help = "change one key by its place in the tree, e.g. model.d_model=512 or optimizer='@Lion()'; may be repeated"
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help=help)
    add_import_argument(parser)


def add_import_argument(parser: argparse.ArgumentParser) -> None:
    """Give a command `--import-from`; its values are `arguments.import_from`, a list."""
    help = "let the configuration run Python modules of this folder, not only of installed packages; may be repeated"
    parser.add_argument(FLAG, action="append", default=[], metavar="FOLDER", help=help)


def apply_override(root: Node, override: str, imports: Imports) -> None:
    """Set one `path=value` in the tree.

    Raises:
        ValueError: there is no such path (with the nearest valid name), the value cannot be read, or what it calls is
            not known to make what the key takes.
    """
    path, equals, text = (part.strip() for part in override.partition("="))
    try:
        if not equals or not path:
            raise ValueError("write it as path=value")
        place = find_place(root, path)
        tree = _parse(text, Slot(place.at, place.hint), [*classes_in(place.hint), *_classes(place.now)], imports)
        _check_not_for_a_key_below(tree, place)
        place.parent.children[place.key] = tree
    except ValueError as error:
        raise ValueError(f"{ORIGIN} {shorten(override)}: {error}") from error


def _check_not_for_a_key_below(tree: Tree, place: Place) -> None:
    """Raise ValueError for a plain value in place of a node that has a key for such a value."""
    node = place.now
    if not isinstance(tree, Leaf) or not isinstance(node, Node) or _fits(tree.value, place.hint):
        return
    hints = get_type_hints(node.cls)
    if below := [name for name in config_fields(node.cls) if _fits(tree.value, hints[name])]:
        wrong = f"must be {describe_hint(place.hint)}, not {type(tree.value).__name__}"
        raise ValueError(f"{wrong}; a key below it that takes such a value is {join(place.at, below[0])}")


def _fits(value: object, hint: object) -> bool:
    try:
        convert(value, hint)
    except TypeError:
        return False
    return True


def _classes(tree: Tree | None) -> list[type]:
    nodes = tree.children if isinstance(tree, Items) else [tree]
    return [node.cls for node in nodes if isinstance(node, Node)]


def _parse(text: str, slot: Slot, near: list[type], imports: Imports) -> Tree:
    if re.match(r"[\s(\[]*@", text):
        return _plant_expression(_called(text), slot, near, imports)
    try:
        syntax = expression(text)
    except SyntaxError:
        if text[:1] in ("'", '"'):
            raise ValueError("begins with a quote and is no string; see to its quotes and backslashes") from None
        return Leaf(value=text, origin=ORIGIN)
    try:
        return plant(ast.literal_eval(syntax), ORIGIN)
    except (ValueError, TypeError):
        return Leaf(value=text, origin=ORIGIN)  # the type check refuses it where the leaf is no string


def _called(text: str) -> ast.expr:
    """The syntax of `@Name(key=value)`, the marks left out."""
    check_text(text)
    try:
        with parsing():
            marked = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.string != "@"]
        return expression(tokenize.untokenize(marked))
    except (SyntaxError, tokenize.TokenError):
        raise ValueError("cannot be read; write @Name(key=value, ...)") from None


def _plant_expression(expression: ast.expr, slot: Slot, near: list[type], imports: Imports) -> Tree:
    match expression:
        case ast.Call(args=[]):
            return _plant_call(expression, slot, near, imports)
        case ast.Tuple() | ast.List():
            items = [_plant_expression(item, slot.item(i), near, imports) for i, item in enumerate(expression.elts)]
            return sequence(items, ORIGIN)
        case ast.Name(id=word):
            return Leaf(value=word, origin=ORIGIN)
    try:
        return plant(ast.literal_eval(expression), ORIGIN)
    except (ValueError, TypeError):
        raise ValueError(f"{ast.unparse(expression)} is neither a literal nor @Name(key=value, ...)") from None


def _plant_call(call: ast.Call, slot: Slot, near: list[type], imports: Imports) -> Tree:
    target = find_target(ast.unparse(call.func), near, imports)
    check_fits(target, slot)
    if not isinstance(target, type):
        if call.keywords:
            raise ValueError(f"{label(target)} is a function; it takes no keys")
        return plant(target(), ORIGIN)
    given = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise ValueError(f"**{ast.unparse(keyword.value)} cannot be read; write @Name(key=value, ...)")
        check_field(target, keyword.arg)
        below = slot.field(target, keyword.arg)
        given[keyword.arg] = _plant_expression(keyword.value, below, classes_in(below.hint), imports)
    return new_node(target, given, ORIGIN)
