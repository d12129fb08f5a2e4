"""Configuration files: gin text, or Python, to a tree of frozen dataclasses, and `--set` on top of it.

    from __gin__ import dynamic_registration
    from jaxtrain import config
    from jaxtrain.nn.mixers import attention

    include "base.gin"
    width = 512                                     # a macro, used as %width
    config.TrainConfig.model = @presets.tiny()      # a dataclass, or a function of no arguments that says it makes one
    local/attention.AttentionConfig:                # scopes tell several instances of a class apart
      window = 4096

The language and its parser are gin's. gin itself reads these files to the same configuration, but keeps a list where a
file writes one; here it becomes a tuple. The configuration is built here and not by gin, because gin drops keys that
nothing refers to, does not check types, does not remember lines, and keeps all it reads in global state.

The whole file is parsed before any statement takes effect. Imports are restricted (config_imports.py). A class or
function is called only where its result is known to fit its key (config_target.py).

An unused key is an error, with one exception. A file may give a key of an included file another value. The keys of the
included file that only the old value used may then stay unused.

Left out: gin's constants, singletons and references that are not called.
"""

import tokenize
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

from gin import config_parser as gin

import jaxtrain
from jaxtrain.cli.config_bindings import Bindings, Bound, Key, Location, scoped
from jaxtrain.cli.config_imports import Imports
from jaxtrain.cli.config_literal import bounded, check_text, parsing, tokens
from jaxtrain.cli.config_names import nearest
from jaxtrain.cli.config_override import apply_override
from jaxtrain.cli.config_paths import check_copies, resolve
from jaxtrain.cli.config_python import python_tree
from jaxtrain.cli.config_runs import attach_models, attach_own_model, attach_rates
from jaxtrain.cli.config_symbols import Delegate, Symbols
from jaxtrain.cli.config_tree import Node, build
from jaxtrain.cli.neighbours import folders_beside
from jaxtrain.record.literal import check_number, shorten

if TYPE_CHECKING:
    from jaxtrain.config import TrainConfig

type Statement = gin.BindingStatement | gin.ImportStatement | gin.IncludeStatement


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedConfig[T]:
    """A configuration, and where the value of each path came from: `file:line`, `default` or `--set`."""

    config: T
    origins: dict[str, str]


@overload
def load(
    path: str | Path, overrides: Sequence[str] = (), *, root: None = None, import_from: Sequence[str | Path] = ()
) -> "LoadedConfig[TrainConfig]": ...


@overload
def load[T](
    path: str | Path, overrides: Sequence[str] = (), *, root: type[T], import_from: Sequence[str | Path] = ()
) -> LoadedConfig[T]: ...


def load(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    root: type | None = None,
    import_from: Sequence[str | Path] = (),
) -> LoadedConfig:
    """Read a .gin file, a Python file (config_python.py) or the config.gin of a run, and apply `path=value` overrides.

    A file in `configs/` that is not in the working folder is that of jaxtrain.

    A configuration names Python modules. They are imported, which runs them. Allowed are modules of installed packages,
    modules that are imported already, and modules in the folders `import_from`. Of their contents, only a dataclass or
    a preset whose result is known to fit its key is called.

    `root` is the class of the whole configuration, TrainConfig by default.

    Raises:
        FileNotFoundError: the file or one it includes does not exist.
        ValueError: a key is unknown, unused, missing or of the wrong type, with file, line and nearest valid name; or a
            module may not be imported.
    """
    path = Path(path) / "config.gin" if Path(path).is_dir() else Path(path)
    path = _find(path, [Path(), *_shipped(path)])
    if path.suffix == ".py":
        imports = Imports([*import_from, path.parent])
        tree = python_tree(path, root or _train_config(), imports)
    else:
        imports = Imports(import_from)
        tree = _gin_tree(path, root, imports)

    def read(file: Path) -> Node:
        return _gin_tree(file, None, imports)

    for override in overrides:
        if override.lstrip().startswith("model."):
            attach_own_model(tree, read)
        apply_override(tree, override, imports)
    attach_models(tree, read)
    attach_own_model(tree, read)
    attach_rates(tree)
    check_copies(tree)
    origins: dict[str, str] = {}
    return LoadedConfig(config=build(tree, origins), origins=origins)


def _gin_tree(path: Path, root: type | None, imports: Imports) -> Node:
    bindings = Bindings()
    _read(path, bindings, imports, ())
    with bounded(str(path)):
        tree = bindings.tree(root or _train_config(), str(path))
    resolve(tree)
    return tree


def _train_config() -> "type[TrainConfig]":
    """Return TrainConfig, which imports JAX: a file that cannot be parsed is refused before."""
    from jaxtrain.config import TrainConfig

    return TrainConfig


def _shipped(path: Path) -> list[Path]:
    """Return the folder that has jaxtrain's own configs/, for a path in such a folder.

    It is in the package where jaxtrain is installed, and beside it in a checkout.
    """
    package = Path(jaxtrain.__file__).parent
    folder = package if (package / "configs").is_dir() else package.parent
    return [folder] if path.parts[:1] == ("configs",) else []


def _find(path: Path, folders: Sequence[Path]) -> Path:
    for folder in folders:
        if (folder / path).is_file():
            return folder / path
    there = [file.name for folder in folders for file in (folder / path).parent.glob(f"*{path.suffix or '.gin'}")]
    if not path.suffix:
        wanted, there = "configuration file and no run", there + folders_beside(path)
    else:
        wanted = "configuration file"
    raise FileNotFoundError(f"there is no {wanted} {str(path)!r}{nearest(path.name, there)}")


def _read(path: Path, bindings: Bindings, imports: Imports, including: tuple[Path, ...]) -> None:
    """Add the bindings of a file and of the files that it includes."""
    including = (*including, path.resolve())
    symbols = Symbols(imports, path.parent)
    for statement in _statements(path):
        location = Location(str(path), statement.location.line_num)
        if isinstance(statement, gin.IncludeStatement):
            _read(_included(statement.filename, location, including), bindings, imports, including)
            continue
        try:
            _apply(statement, symbols, bindings, location)
        except ValueError as error:
            raise ValueError(f"{location}: {error}") from error


def _included(name: str, location: Location, including: tuple[Path, ...]) -> Path:
    """Return the path of an included file.

    It is looked up beside the including file, then in the working directory, then in its configs/ and in jaxtrain's.
    """
    try:
        path = _find(Path(name), [Path(location.file).parent, Path(), Path("configs"), *_shipped(Path(name))])
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{location}: {error}") from None
    if path.resolve() in including:
        raise ValueError(f"{location}: {name!r} includes itself")
    return path


def _apply(statement: Statement, symbols: Symbols, bindings: Bindings, location: Location) -> None:
    match statement:
        case gin.ImportStatement():
            symbols.add(statement)
        case gin.BindingStatement(scope=scope, selector=name, arg_name="", value=value):
            bindings.bind(Key("", None, scoped(scope, name)), Bound(symbols.value(value), location))
        case gin.BindingStatement(scope=scope, selector=selector, arg_name=name, value=value):
            key = Key(scope, symbols.dataclass(selector), name)
            bindings.bind(key, Bound(symbols.value(value), location))


def _statements(path: Path) -> list[Statement]:
    """Return all statements of a file, parsed before the first of them takes effect."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file in UTF-8") from None
    with parsing(str(path)):
        check_text(text, str(path))
        _check_tokens(path, text)
        return _parse(path, text)


def _parse(path: Path, text: str) -> list[Statement]:
    try:
        parser = gin.ConfigParser(text, Delegate())
        return list(parser)
    except SyntaxError as error:
        raise ValueError(f"{path}:{error.lineno}: {_syntax(error.msg)}") from None
    except tokenize.TokenError as error:
        message, (line, _) = error.args
        raise ValueError(f"{path}:{line}: {message}") from None
    except TypeError as error:  # from a dict literal with an unhashable key
        raise ValueError(f"{path}:{parser.current_token.start[0]}: {error}") from None


def _syntax(message: str) -> str:
    """Return gin's message of a syntax error. For a malformed literal, return the literal and Python's message."""
    reason, failed, literal = message.partition("\n    Failed to parse token ")
    if not failed:
        return message.splitlines()[-1].strip()
    literal = shorten(literal)
    if literal.strip("'-").isidentifier():
        return f"Failed to parse token {literal}; write strings in quotes"
    return f"Failed to parse token {literal}: {reason.removesuffix(' (<unknown>, line 1)')}"


def _check_tokens(path: Path, text: str) -> None:
    """Raise ValueError for numbers and minus signs that gin's parser would read as something else."""
    before = None
    for token in tokens(text):
        try:
            if token.type == tokenize.NUMBER:
                check_number(token.string)
            elif before == "-":
                raise ValueError("a minus stands before a number only")
        except ValueError as error:
            raise ValueError(f"{path}:{token.start[0]}: {error}") from None
        before = token.string
