"""The schedules there are, found by looking into `schedules/`, so that a new one is a new file and nothing else.

A schedule can be named in text with its parameters, `Interleaved(chunks_per_stage=3)` or `TwoBP(schedule=GPipe())`; the
text is parsed, never evaluated, and checked as configuration files are.
"""

import ast
import difflib

from jaxtrain.cli.config_literal import expression, shorten
from jaxtrain.cli.config_tree import Leaf, Node, Tree, build, config_fields, new_node
from jaxtrain.cli.config_types import subclasses
from jaxtrain.pipeline.schedules.base import Schedule


def all_schedules() -> dict[str, type[Schedule]]:
    """Every schedule class by name, but those that are nothing without a parameter, such as a table's file."""
    return {name: schedule for name, schedule in _classes().items() if not _required(new_node(schedule, {}, name))}


def parse(text: str) -> Schedule:
    """Build the schedule that the text names, with the given parameters and the defaults of the others.

    Raises:
        ValueError: there is no such schedule or parameter, or a value is of the wrong type or out of range.
    """
    text = text.strip()
    try:
        syntax = expression(text)
    except SyntaxError:
        raise ValueError(
            f"`{shorten(text)}` is no schedule; write `PairedInterleaved` or `Interleaved(chunks_per_stage=3)`"
        ) from None
    except ValueError as error:
        raise ValueError(f"`{shorten(text)}` {error}") from None
    return build(_plant(syntax, text), {})


def _classes() -> dict[str, type[Schedule]]:
    return dict(sorted(subclasses(Schedule).items()))


def _plant(node: ast.expr, text: str) -> Node:
    """The tree of a schedule and its parameters."""
    name, keywords = (node.func, node.keywords) if isinstance(node, ast.Call) else (node, [])
    unnamed = isinstance(node, ast.Call) and node.args or any(keyword.arg is None for keyword in keywords)
    if not isinstance(name, ast.Name) or unnamed:
        raise ValueError(
            f"`{text}` is no schedule; write a name and named parameters: `Interleaved(chunks_per_stage=3)`"
        )
    schedule, given = _class(name.id), {}
    known = list(config_fields(schedule))
    for keyword in keywords:
        if keyword.arg not in known:
            raise ValueError(f"{name.id} has no parameter `{keyword.arg}`; {_close(keyword.arg, known)}")
        if keyword.arg in given:
            raise ValueError(f"`{text}`: {name.id} has two values for `{keyword.arg}`; remove one of them")
        given[keyword.arg] = _value(keyword.value, text)
    planted = new_node(schedule, given, f"`{text}`")
    for missing in _required(planted):
        raise ValueError(f"`{text}`: {name.id} needs `{missing}`; write `{name.id}({missing}=...)`")
    return planted


def _required(node: Node) -> list[str]:
    """Parameters that have no default and were not given."""
    return [name for name in config_fields(node.cls) if name not in node.children]


def _class(name: str) -> type[Schedule]:
    classes = _classes()
    if name not in classes:
        raise ValueError(f"there is no schedule `{name}`; {_close(name, list(classes))}")
    return classes[name]


def _value(node: ast.expr, text: str) -> Tree:
    if isinstance(node, ast.Call | ast.Name):
        return _plant(node, text)
    try:
        return Leaf(value=ast.literal_eval(node), origin=f"`{text}`")
    except (ValueError, TypeError):
        raise ValueError(f"`{ast.unparse(node)}` in `{text}` must be a number, a string or a schedule") from None


def _close(name: str, known: list[str]) -> str:
    folded = {entry.lower(): entry for entry in known}
    close = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    return f"did you mean `{folded[close[0]]}`?" if close else f"known: {', '.join(known) or 'none'}"
