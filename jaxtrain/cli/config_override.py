"""`--set path=value`: changes to the tree of a configuration, by path.

    model.d_model=512    phases[0].steps=100    optimizer=@Lion()    optimizer=@jaxtrain.optim.lion.Lion(b1=0.95)

A value is a Python literal, and a string where it is none. `@Name(key=value)` is a new node; a short name is looked up
in the modules beside the classes that the field has now or is annotated with, a full one anywhere.
"""

import argparse
import ast
import contextlib
import importlib
import inspect
import io
import pkgutil
import re
import tokenize
from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from types import ModuleType
from typing import get_type_hints

from jaxtrain.cli.config_place import ORIGIN, Place, find_place
from jaxtrain.cli.config_symbols import check_target
from jaxtrain.cli.config_tree import (
    Items,
    Leaf,
    Node,
    Tree,
    check_field,
    config_fields,
    join,
    new_node,
    plant,
    sequence,
)
from jaxtrain.cli.config_types import classes_in, convert, describe_hint, label, nearest


def add_set_argument(parser: argparse.ArgumentParser) -> None:
    """Give a command `--set`; its values are `arguments.set`, a list."""
    help = "change one key by its place in the tree, e.g. model.d_model=512 or optimizer='@Lion()'; may be repeated"
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help=help)


def apply_override(root: Node, override: str) -> None:
    """Set one `path=value` in the tree.

    Raises:
        ValueError: there is no such path (with the nearest valid name), or the value cannot be read.
    """
    path, equals, text = (part.strip() for part in override.partition("="))
    try:
        if not equals or not path:
            raise ValueError("write it as path=value")
        place = find_place(root, path)
        tree = _parse(text, [*classes_in(place.hint), *_classes(place.now)])
        _check_not_for_a_key_below(tree, place)
        place.parent.children[place.key] = tree
    except ValueError as error:
        raise ValueError(f"{ORIGIN} {override}: {error}") from error


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


def _parse(text: str, near: list[type]) -> Tree:
    if re.match(r"[\s(\[]*@", text):
        return _parse_nodes(text, near)
    try:
        return plant(ast.literal_eval(text), ORIGIN)
    except (ValueError, SyntaxError, TypeError):
        return Leaf(value=text, origin=ORIGIN)  # the type check refuses it where the leaf is no string


def _parse_nodes(text: str, near: list[type]) -> Tree:
    try:
        tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.string != "@"]
        expression = ast.parse(tokenize.untokenize(tokens).strip(), mode="eval").body
    except (SyntaxError, tokenize.TokenError):
        raise ValueError("cannot be read; write @Name(key=value, ...)") from None
    return _plant_expression(expression, near)


def _plant_expression(expression: ast.expr, near: list[type]) -> Tree:
    match expression:
        case ast.Call(args=[]):
            return _plant_call(expression, near)
        case ast.Tuple() | ast.List():
            return sequence([_plant_expression(item, near) for item in expression.elts], ORIGIN)
        case ast.Name(id=word):
            return Leaf(value=word, origin=ORIGIN)
    try:
        return plant(ast.literal_eval(expression), ORIGIN)
    except ValueError:
        raise ValueError(f"{ast.unparse(expression)} is neither a literal nor @Name(key=value, ...)") from None


def _plant_call(call: ast.Call, near: list[type]) -> Tree:
    target = find_target(ast.unparse(call.func), near)
    check_target(target)
    if not isinstance(target, type):
        if call.keywords:
            raise ValueError(f"{label(target)} is a function; it takes no keys")
        return plant(target(), ORIGIN)
    hints = get_type_hints(target)
    given = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise ValueError(f"**{ast.unparse(keyword.value)} cannot be read; write @Name(key=value, ...)")
        check_field(target, keyword.arg)
        given[keyword.arg] = _plant_expression(keyword.value, classes_in(hints[keyword.arg]))
    return new_node(target, given, ORIGIN)


def find_target(name: str, near: Iterable[type]) -> Callable:
    """The class or preset called `name`: by its full path, or by the end of it among the modules beside `near`."""
    module, _, attribute = name.rpartition(".")
    with contextlib.suppress(ModuleNotFoundError, AttributeError, ValueError):
        return getattr(importlib.import_module(module), attribute)
    known = {f"{target.__module__}.{target.__qualname__}": target for target in _beside(near)}
    matches = [full for full in known if f".{full}".endswith(f".{name}")]
    if len(matches) > 1:
        raise ValueError(f"@{name}() may be any of {', '.join(sorted(matches))}; write one in full")
    if not matches:
        raise ValueError(f"there is no class {name!r}{nearest(name, [target.__name__ for target in known.values()])}")
    return known[matches[0]]


def _beside(classes: Iterable[type]) -> list[Callable]:
    """Dataclasses and presets of the packages that `classes` are defined in."""
    modules = []
    for name in {cls.__module__ for cls in classes}:
        package, _, _ = name.rpartition(".")
        siblings = pkgutil.iter_modules(importlib.import_module(package).__path__) if package else ()
        modules += [name, *(f"{package}.{sibling.name}" for sibling in siblings if not sibling.name.startswith("_"))]
    return [target for name in dict.fromkeys(modules) for target in _targets(importlib.import_module(name))]


def _targets(module: ModuleType) -> list[Callable]:
    own = [value for value in vars(module).values() if getattr(value, "__module__", None) == module.__name__]
    return [value for value in own if is_dataclass(value) or (inspect.isfunction(value) and _makes_dataclass(value))]


def _makes_dataclass(function: Callable) -> bool:
    made = inspect.signature(function).return_annotation
    return isinstance(made, type) and is_dataclass(made) and not function.__name__.startswith("_")
