"""The run's own copies of the files that its configuration names by path.

A field annotated `FilePath` names a file that the run's numbers depend on: a tokenizer, the table of a schedule. The
run folder has a copy of it, kept_files/<digest>-<name>, and the run's config.gin names the copy. So the run may be
moved, and it reads the same bytes when the original changes. kept_files/origins.json has the path from which each copy
was read. A field annotated `Glob` or `Folder` names too many files to copy, so config.gin has its absolute path.

Older versions wrote a config.gin without copies. It is read as it is, and the copies are made when training goes on.
"""

import ast
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAliasType, get_args, get_type_hints

from jaxtrain.paths import FilePath, Folder, Glob
from jaxtrain.record.text import Difference, diff, render
from jaxtrain.record.walk import config_fields, entries, join
from jaxtrain.record.written import written_values
from jaxtrain.train.folder import FILES, RunFolder, write_whole

ORIGINS = "origins.json"
HERE = "{run}/"  # in a path of a config.gin: its own folder
DIGITS = 16  # of the digest, in the name of a copy


class KeptFile(NamedTuple):
    origin: str  # the absolute path from which it was read
    name: str  # of the copy
    content: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFiles:
    """A configuration, the files that it names by the paths of their keys, and the text of its config.gin."""

    config: Any
    files: dict[str, KeptFile]
    text: str

    @classmethod
    def of(cls, config: object) -> "RunFiles":
        """Read the files that a configuration names.

        Raises:
            OSError: a file cannot be read.
            ValueError: no config.gin can name a class or value of the configuration.
        """
        files = {at: _read(Path(text)) for at, text in marked(config, FilePath)}
        return cls(config=config, files=files, text=render(config, _recorded(config, files)))

    def write(self, folder: RunFolder) -> None:
        """Write the copies that the folder lacks, and then config.gin."""
        origins = read_origins(folder)
        for file in self.files.values():
            copy = folder.files / file.name
            if not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                write_whole(copy, file.content)
            if os.path.realpath(copy) != file.origin:
                origins[file.name] = file.origin
        if origins:
            write_whole(folder.files / ORIGINS, json.dumps(origins, indent=1).encode())
        folder.write_config(self.text)

    def from_copies(self, folder: RunFolder) -> Any:
        """Return the configuration with the run's copies in place of the files."""
        return _replaced(self.config, {at: str(folder.files / file.name) for at, file in self.files.items()})

    def check_unchanged(self, before: Mapping[str, str], folder: RunFolder) -> None:
        """Raise ValueError where a path now has another file than the one that the run read there.

        `before` has the names of the run's copies, by the paths of their keys.
        """
        origins = read_origins(folder)
        for at, file in self.files.items():
            old = before.get(at)
            if old and old != file.name and origins.get(old) == file.origin:
                raise ValueError(
                    f"{at}: {file.origin} is not the file any more that {folder.path} was made with; put that one "
                    f"back, go on with the run's copy of it, --set {at}={folder.files / old}, pass --overwrite to "
                    f"begin anew, or --run for another folder"
                )


def kept_names(text: str) -> dict[str, str]:
    """Return the names of the copies that the text of a config.gin names, by the paths of their keys."""
    start = f"{HERE}{FILES}/"
    texts = {at: ast.literal_eval(value) for at, value in written_values(text).items() if start in value}
    return {at: value.removeprefix(start) for at, value in texts.items() if value.startswith(start)}


def differences(left: RunFiles, right: RunFiles) -> list[Difference]:
    """Return the keys in which two configurations differ. Files with the same content are equal at any path."""
    a, b = (dict(entries(side.config)) | _recorded(side.config, side.files) for side in (left, right))
    return [change for change in diff(left.config, right.config) if a.get(change.path) != b.get(change.path)]


def remarks(folder: RunFolder, config: object) -> list[str]:
    """Return a line for each file whose original has changed, or that is read instead of the run's own copy."""
    origins, lines = read_origins(folder), []
    for at, text in marked(config, FilePath):
        path = Path(text)
        origin = Path(origins.get(path.name, path))
        if path.parent != folder.files:
            if origins:
                lines.append(f"{at}: {path} is read, which is not the run's own copy")
        elif origin != path and origin.is_file() and digest(origin.read_bytes()) != path.name[:DIGITS]:
            lines.append(f"{origin} is another file now; the run's own copy is used, {path}")
    return lines


def read_origins(folder: RunFolder) -> dict[str, str]:
    """Return the paths from which the run's copies were read, by the names of the copies."""
    file = folder.files / ORIGINS
    try:
        return {str(name): str(origin) for name, origin in json.loads(file.read_bytes()).items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error}); remove it: it tells where the run's files were read") from error


def _recorded(config: object, files: dict[str, KeptFile]) -> dict[str, str]:
    """Return the values that the config.gin of a run has for the keys that name files."""
    globs = {at: _absolute(text) for mark in (Glob, Folder) for at, text in marked(config, mark)}
    return globs | {at: f"{HERE}{FILES}/{file.name}" for at, file in files.items()}


def _read(path: Path) -> KeptFile:
    content = path.read_bytes()
    start = f"{digest(content)}-"
    return KeptFile(os.path.realpath(path), path.name if path.name.startswith(start) else start + path.name, content)


def _absolute(glob: str) -> str:
    """Return the pattern as an absolute path; a URL is returned as it is."""
    if "://" in glob and not os.path.lexists(glob):
        return glob
    return os.path.join(os.getcwd(), glob if os.path.lexists(glob) else os.path.expanduser(glob))


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGITS]


def marked(value: object, mark: TypeAliasType, hint: object = None, at: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and the text of every field of a configuration that is annotated with a mark."""
    if isinstance(value, str) and mark in (hint, *get_args(hint)):
        yield at, value
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from marked(item, mark, None, join(at, index))
    elif dataclasses.is_dataclass(value):
        hints = get_type_hints(type(value))
        for name in config_fields(type(value)):
            yield from marked(getattr(value, name), mark, hints[name], join(at, name))


def _replaced(value: Any, new: Mapping[str, str], at: str = "") -> Any:
    """Return a configuration with other values at some paths; itself where there are none."""
    if at in new:
        return new[at]
    if isinstance(value, tuple):
        items = tuple(_replaced(item, new, join(at, index)) for index, item in enumerate(value))
        return value if all(a is b for a, b in zip(items, value, strict=True)) else items
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = {name: getattr(value, name) for name in config_fields(type(value))}
    changed = {name: item for name, old in fields.items() if (item := _replaced(old, new, join(at, name))) is not old}
    return dataclasses.replace(value, **changed) if changed else value
