"""A configuration written in Python: a file whose function `config()` returns it.

    def config() -> TrainConfig:
        return TrainConfig(model=..., data=..., optimizer=..., phases=(Phase(...),))

The file is run, because whoever names it on a command line trusts it. It may import anything, also modules beside it. A
run records the returned configuration as a config.gin, like any other.
"""

import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType

from jaxtrain.cli.config_imports import Imports
from jaxtrain.cli.config_tree import Node, node_of
from jaxtrain.record.walk import label


def python_tree(path: Path, root: type, imports: Imports) -> Node:
    """Return the tree of the configuration that a file makes. `imports` must allow the folder of the file.

    Raises:
        ValueError: the file cannot be imported, has no function `config()`, or the function returns another class.
    """
    function = vars(_module(path, imports)).get("config")
    if not inspect.isfunction(function) or inspect.signature(function).parameters:
        raise ValueError(f"{path} has no function `config()` without arguments; write one that returns a {label(root)}")
    try:
        made = function()
    except (Exception, SystemExit) as error:  # the file's code may raise anything
        raise ValueError(f"{path}:{_line(error, path)}: {type(error).__name__}: {error}") from error
    if type(made) is not root:
        raise ValueError(f"{path}: config() returns a {type(made).__name__}; make it return a {label(root)}")
    return node_of(made, f"{path}:config()")


def _module(path: Path, imports: Imports) -> ModuleType:
    """Import the file as a module under its own name, so that the config.gin of a run can name its classes."""
    name = path.stem
    if not name.isidentifier():
        raise ValueError(f"{path}: give the file the name of a module, letters, digits and _ alone")
    known = sys.modules.get(name)
    if known:
        found = getattr(known, "__file__", "built in")
    else:
        spec = importlib.util.find_spec(name)
        found = spec.origin if spec else None
    if found is None or Path(found).resolve() != path.resolve():
        raise ValueError(f"{path}: Python has another module {name!r}, {found}; give the file another name")
    try:
        return imports.module(name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _line(error: BaseException, path: Path) -> int | None:
    """Return the line of the file nearest to an error, in its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno for frame in reversed(frames) if Path(frame.filename).resolve() == path.resolve()), None)
