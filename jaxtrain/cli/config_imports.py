"""Which modules a configuration may import. Importing a module runs it, and a configuration may come from a stranger.

Allowed are modules of installed packages, modules that the program has imported already (jaxtrain itself), and modules
in folders named by `--import-from`. Modules in the working folder, beside the configuration or on PYTHONPATH are not
allowed, although Python would find them. Python's own modules are not allowed either: they hold no configuration.
"""

import importlib
import importlib.metadata
import importlib.util
import pkgutil
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

from jaxtrain.cli.config_names import nearest

FLAG = "--import-from"


class NoModuleError(ValueError):
    """There is no module of that name, anywhere."""


class Imports:
    """The modules that a configuration may import. The user named `folders`, which Python searches last."""

    def __init__(self, folders: Iterable[str | Path] = ()):
        self._folders = [Path(folder).resolve() for folder in folders]
        for folder, given in zip(self._folders, folders, strict=True):
            if not folder.is_dir():
                raise ValueError(f"{FLAG} {given}: there is no such folder")
        sys.path += [str(folder) for folder in self._folders if str(folder) not in sys.path]
        importlib.invalidate_caches()

    def module(self, name: str, *, beside: Path = Path()) -> ModuleType:
        """Import a module.

        Raises:
            NoModuleError: there is no such module, with the nearest name.
            ValueError: it may not be imported, with the flag that would allow it; or its code raises.
        """
        self.check(name, beside)
        try:
            return importlib.import_module(name)
        except Exception as error:  # the module's code may raise anything
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            if missing and f"{name}.".startswith(f"{missing}."):
                raise NoModuleError(_nearest_module(name, missing)) from None
            raise ValueError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error

    def check(self, name: str, beside: Path = Path()) -> None:
        """Raise ValueError for a module that exists and may not be imported, before any of its code runs."""
        if name.partition(".")[0] in sys.stdlib_module_names:
            raise ValueError(f"{name} is a module of Python's own, in which there is no configuration")
        if name.endswith(".__main__"):
            raise ValueError(f"{name} is a program, which would run; a configuration imports modules")
        if folder := self._forbidden_folder(name) or _found_in((beside, Path()), name):
            raise ValueError(
                f"{name} is code in the folder {folder} and of no installed package; if you trust what is there, "
                f"let it run: {FLAG} {shlex.quote(str(folder))}"
            )

    def _forbidden_folder(self, name: str) -> Path | None:
        """Return the folder that Python would import a module from, or None where the import is allowed."""
        if (found := _first_code(name)) is None:
            return None
        file, folder = found
        allowed = any(folder.resolve().is_relative_to(own) for own in self._folders)
        return None if allowed or _is_installed(name.partition(".")[0], file) else folder


def _first_code(name: str) -> tuple[Path, Path] | None:
    """Return the first file that importing a module would run, and the folder on Python's path that it is in.

    Return None where no code would run. Namespace packages have no code and are skipped, because each of their parts
    may be in another folder.
    """
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        above = ".".join(parts[:depth])
        if above in sys.modules:
            if _is_namespace(sys.modules[above]):
                continue
            return None
        spec = importlib.util.find_spec(above)
        if spec is None:
            return None
        if spec.has_location and spec.origin:
            file = Path(spec.origin)
            return file, file.absolute().parents[depth if spec.submodule_search_locations else depth - 1]
    return None


def _is_namespace(module: ModuleType) -> bool:
    return module.__spec__ is not None and not module.__spec__.has_location and module.__spec__.origin is None


def _found_in(folders: Iterable[Path], name: str) -> Path | None:
    """Return the first of the folders that has the module, or None. None too where Python finds the module itself."""
    top = name.partition(".")[0]
    if top in sys.modules or importlib.util.find_spec(top) is not None:
        return None
    return next((folder for folder in folders if _files(folder, name)), None)


def _files(folder: Path, name: str) -> bool:
    path = folder.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _is_installed(top: str, file: Path) -> bool:
    """Tell whether a file is of an installed package, regular or editable. `top` is its top-level module."""
    installed = [Path(path) for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    # PathFinder finds no module that a package's own finder provides, such as the finder of an editable install.
    if PathFinder.find_spec(top) is None or any(file.is_relative_to(folder) for folder in installed):
        return True
    linked = any(file.is_relative_to(folder) for folder in _linked(installed))
    distributions = importlib.metadata.distributions(path=[str(folder) for folder in installed])
    return linked and any(top in _names(found) for found in distributions)


def _linked(installed: list[Path]) -> Iterator[Path]:
    """Yield the folders that .pth files of installed packages add to Python's path.

    Such a folder is a whole project: its packages, and whatever else is in it.
    """
    for file in (file for folder in installed for file in folder.glob("*.pth")):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.strip() and not line.startswith(("import ", "import\t", "#")):
                yield file.parent / line.strip()


def _names(distribution: importlib.metadata.Distribution) -> set[str]:
    """Return the names of a distribution's packages, as far as its metadata has them."""
    return {re.sub(r"[-.]+", "_", distribution.name), *(distribution.read_text("top_level.txt") or "").split()}


def _nearest_module(name: str, missing: str) -> str:
    parent, _, last = missing.rpartition(".")
    path = getattr(sys.modules[parent], "__path__", None) if parent else None
    if parent and path is None:
        above, _, module = parent.rpartition(".")
        return (
            f"{name}: {parent} is a module, and modules are imported, not what is in them: write "
            f"`{f'from {above} ' if above else ''}import {module}` and {module}.{last}"
        )
    return f"there is no module {missing!r}{nearest(last, [m.name for m in pkgutil.iter_modules(path)])}"
