"""docs/techniques.md: the table of every class that a configuration can choose by its type, one section a base class.

It is made from the classes alone: `python -m jaxtrain.cli.techniques > docs/techniques.md`. A test checks that the file
is up to date.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import jaxtrain
from jaxtrain.cli.config_options import paper, summary
from jaxtrain.cli.config_types import subclasses
from jaxtrain.technique import Technique

HEAD = """\
# Techniques

Every class that a key of a configuration can choose by its type. Written by `python -m jaxtrain.cli.techniques`, from
the classes. How to write one of your own is in [extending.md](extending.md).
"""


def text() -> str:
    """Return the whole file."""
    for module in pkgutil.walk_packages(jaxtrain.__path__, "jaxtrain."):
        if not module.name.startswith("jaxtrain.cli."):
            importlib.import_module(module.name)
    return HEAD + "".join(_section(base) for base in sorted(_bases(Technique), key=_full))


def _bases(above: type) -> Iterator[type]:
    """Yield the abstract base classes below a class, at any depth."""
    known: list[type] = above.__subclasses__()
    for cls in known:
        if inspect.isabstract(cls) and cls.__module__.startswith("jaxtrain."):
            yield cls
            yield from _bases(cls)


def _section(base: type) -> str:
    known = [cls for _, cls in sorted(subclasses(base).items()) if cls.__module__.startswith("jaxtrain.")]
    found = [cls for cls in known if next(filter(inspect.isabstract, cls.__mro__)) is base]
    rows = "".join(f"| `{cls.__name__}` | {summary(cls)} | {paper(cls)} | {_file(cls)} |\n" for cls in found)
    head = f"\n## {base.__name__}, {_file(base)}\n\n{summary(base)}\n\n"
    return f"{head}| class | what it does | from | file |\n| --- | --- | --- | --- |\n{rows}"


def _file(cls: type) -> str:
    return f"`{cls.__module__.replace('.', '/')}.py`"


def _full(cls: type) -> str:
    return f"{cls.__module__}.{cls.__name__}"


if __name__ == "__main__":
    print(text(), end="")
