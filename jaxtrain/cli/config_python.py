"""A configuration written in Python: a file whose function `config()` returns it.

    def config() -> TrainConfig:
        return TrainConfig(model=..., data=..., optimizer=..., phases=(Phase(...),))

The file runs, and imports what it likes, what lies beside it too: who names it on a command line trusts it. A run
records what the function returned as any configuration, as a config.gin.
"""

import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType

from jaxtrain.cli.config_imports import Imports
from jaxtrain.cli.config_tree import Tree, plant
from jaxtrain.cli.config_types import label


def python_tree(path: Path, root: type, imports: Imports) -> Tree:
    """Return the tree of the configuration that a file makes; `imports` may import from its folder.

    Raises:
        ValueError: the file cannot be imported, has no function `config()`, or that makes something else.
    """
    function = vars(_module(path, imports)).get("config")
    if not inspect.isfunction(function) or inspect.signature(function).parameters:
        raise ValueError(f"{path} has no function `config()` without arguments; write one that returns a {label(root)}")
    try:
        made = function()
    except (Exception, SystemExit) as error:  # whatever its code raises
        raise ValueError(f"{path}:{_line(error, path)}: {type(error).__name__}: {error}") from error
    if type(made) is not root:
        raise ValueError(f"{path}: config() returns a {type(made).__name__}; make it return a {label(root)}")
    return plant(made, f"{path}:config()")


def _module(path: Path, imports: Imports) -> ModuleType:
    """Import the file as a module under its own name, by which the config.gin of a run can name its classes."""
    name = path.stem
    if not name.isidentifier():
        raise ValueError(f"{path}: give the file the name of a module, letters, digits and _ alone")
    known = sys.modules.get(name)
    found = getattr(known, "__file__", "built in") if known else importlib.util.find_spec(name).origin
    if found is None or Path(found).resolve() != path.resolve():
        raise ValueError(f"{path}: Python has another module {name!r}, {found}; give the file another name")
    try:
        return imports.module(name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _line(error: BaseException, path: Path) -> int | None:
    """The last line of the file that was on the way to an error."""
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno for frame in reversed(frames) if Path(frame.filename).resolve() == path.resolve()), None)
