"""The files that a configuration names by path, kept with the run.

A field annotated `FilePath` names a file that numbers rest on: a tokenizer, the table of a schedule. The run folder has
a copy of it, kept_files/<digest>-<name>, and its config.gin names that. So the run may be moved, and goes by the same
bytes whatever becomes of the original. kept_files/origins.json remembers where each copy was read. A field annotated
`Glob` names files too many to copy: config.gin has it from the root of the file system.

A config.gin without copies, of an older version, is read as it is, and has its copies when training goes on.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxtrain.cli.config_paths import DIGITS, HERE, digest, marked
from jaxtrain.cli.config_text import Difference, diff, render
from jaxtrain.cli.config_tree import build, entries, plant
from jaxtrain.paths import FilePath, Glob
from jaxtrain.train.folder import FILES, RunFolder, write_whole

ORIGINS = "origins.json"


class KeptFile(NamedTuple):
    origin: str  # where it was read, from the root
    name: str  # of the copy
    content: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFiles:
    """A configuration with the content of the files that it names, each by the path of its key, and its config.gin."""

    config: Any
    files: dict[str, KeptFile]
    text: str

    @classmethod
    def of(cls, config: object) -> "RunFiles":
        """Read the files. Raises OSError where one cannot be read, ValueError where no config.gin could be written."""
        files = {at: _read(Path(leaf.value)) for at, leaf in marked(plant(config, ""), FilePath)}
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
        tree = plant(self.config, "")
        for at, leaf in marked(tree, FilePath):
            leaf.value = str(folder.files / self.files[at].name)
        return build(tree, {})

    def check_unchanged(self, before: "RunFiles", folder: RunFolder) -> None:
        """Raise ValueError where another file lies now at a path at which the run has read one."""
        origins = read_origins(folder)
        for at, file in self.files.items():
            old = before.files.get(at)
            if old and old.name != file.name and origins.get(old.name) == file.origin:
                raise ValueError(
                    f"{at}: {file.origin} is not the file any more that {folder.path} was made with; put that one "
                    f"back, go on with the run's copy of it, --set {at}={folder.files / old.name}, pass --overwrite to "
                    f"begin anew, or --run for another folder"
                )


def differences(left: RunFiles, right: RunFiles) -> list[Difference]:
    """Return the keys in which two configurations differ; files of one content are the same, wherever they lie."""
    a, b = (dict(entries(side.config)) | _recorded(side.config, side.files) for side in (left, right))
    return [change for change in diff(left.config, right.config) if a.get(change.path) != b.get(change.path)]


def remarks(folder: RunFolder, config: object) -> list[str]:
    """Return a line about each file of which the run's copy and what lies at the named path are not the same now."""
    origins, lines = read_origins(folder), []
    for at, leaf in marked(plant(config, ""), FilePath):
        path = Path(leaf.value)
        origin = Path(origins.get(path.name, path))
        if path.parent != folder.files:
            if origins:
                lines.append(f"{at}: {path} is read, which is not the run's own copy")
        elif origin != path and origin.is_file() and digest(origin.read_bytes()) != path.name[:DIGITS]:
            lines.append(f"{origin} is another file now; the run's own copy is used, {path}")
    return lines


def read_origins(folder: RunFolder) -> dict[str, str]:
    """Return where the run's copies were read, by the names of the copies."""
    file = folder.files / ORIGINS
    try:
        return {str(name): str(origin) for name, origin in json.loads(file.read_bytes()).items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({error}); remove it: it tells where the run's files were read") from error


def _recorded(config: object, files: dict[str, KeptFile]) -> dict[str, str]:
    """Return what the config.gin of a run has at the keys that name files."""
    globs = {at: _from_root(leaf.value) for at, leaf in marked(plant(config, ""), Glob)}
    return globs | {at: f"{HERE}{FILES}/{file.name}" for at, file in files.items()}


def _read(path: Path) -> KeptFile:
    content = path.read_bytes()
    start = f"{digest(content)}-"
    return KeptFile(os.path.realpath(path), path.name if path.name.startswith(start) else start + path.name, content)


def _from_root(glob: str) -> str:
    """Return the pattern from the root of the file system; URLs are as they are."""
    if "://" in glob and not os.path.lexists(glob):
        return glob
    return os.path.join(os.getcwd(), glob if os.path.lexists(glob) else os.path.expanduser(glob))
