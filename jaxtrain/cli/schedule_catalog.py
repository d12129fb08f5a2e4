"""The schedules there are, found by looking into `schedules/`, so that a new one is a new file and nothing else.

A schedule can be named in text with its parameters, `Interleaved(chunks_per_stage=3)` or `TwoBP(schedule=GPipe())`; the
text is parsed, never evaluated.
"""

import ast
import difflib
import importlib
import pkgutil
from dataclasses import fields

from jaxtrain.pipeline import schedules
from jaxtrain.pipeline.schedules.base import Schedule


def all_schedules() -> dict[str, type[Schedule]]:
    """Every schedule class by name."""
    found = {}
    for entry in pkgutil.iter_modules(schedules.__path__, f"{schedules.__name__}."):
        module = importlib.import_module(entry.name)
        for name, value in vars(module).items():
            own = isinstance(value, type) and value.__module__ == module.__name__
            if own and issubclass(value, Schedule) and value is not Schedule:
                found[name] = value
    return dict(sorted(found.items()))


def parse(text: str) -> Schedule:
    """Build the schedule that the text names, with the given parameters and the defaults of the others."""
    try:
        return _build(ast.parse(text.strip(), mode="eval").body, text)
    except SyntaxError:
        raise ValueError(
            f"`{text}` is no schedule; write `PairedInterleaved` or `Interleaved(chunks_per_stage=3)`"
        ) from None


def _build(node: ast.expr, text: str) -> Schedule:
    name = node.func if isinstance(node, ast.Call) else node
    if not isinstance(name, ast.Name) or (isinstance(node, ast.Call) and node.args):
        raise ValueError(
            f"`{text}` is no schedule; write a name and named parameters: `Interleaved(chunks_per_stage=3)`"
        )
    schedule = _class(name.id)
    given = {keyword.arg: keyword.value for keyword in node.keywords} if isinstance(node, ast.Call) else {}
    known = [field.name for field in fields(schedule)]
    for key in given:
        if key not in known:
            raise ValueError(f"{name.id} has no parameter `{key}`; {_close(str(key), known)}")
    return schedule(**{key: _value(value, text) for key, value in given.items()})


def _class(name: str) -> type[Schedule]:
    classes = all_schedules()
    if name not in classes:
        raise ValueError(f"there is no schedule `{name}`; {_close(name, list(classes))}")
    return classes[name]


def _value(node: ast.expr, text: str) -> object:
    if isinstance(node, ast.Call | ast.Name):
        return _build(node, text)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"`{ast.unparse(node)}` in `{text}` must be a number or a schedule") from None


def _close(name: str, known: list[str]) -> str:
    folded = {entry.lower(): entry for entry in known}
    close = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    return f"did you mean `{folded[close[0]]}`?" if close else f"known: {', '.join(known) or 'none'}"
