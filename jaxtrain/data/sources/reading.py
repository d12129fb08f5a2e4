"""Errors of libraries about a data file, raised again as a ValueError with the file, the place in it and a remedy."""

import contextlib
from collections.abc import Iterable, Iterator


class Unusable(ValueError):
    """An error whose message already has file, place and remedy."""


class Place:
    """A place in a file: how far it has been read."""

    def __init__(self, path: str, unit: str):
        self.path, self.unit = path, unit
        self._number: int | None = None
        self._is_read = False

    def each[T](self, items: Iterable[T], *, first: int) -> Iterator[tuple[int, T]]:
        """Yield every item with its number. The place is that item until the next one is requested."""
        for self._number, item in enumerate(items, first):
            self._is_read = True
            yield self._number, item
            self._is_read = False

    def __str__(self) -> str:
        if self._number is None:
            return self.path
        return f"{self.path}:{self._number}" if self._is_read else f"{self.path} after {self.unit} {self._number}"


@contextlib.contextmanager
def reading(path: str, *, what: str = "bytes", unit: str = "byte") -> Iterator[Place]:
    """Raise ValueError, with the place in the file, for any exception in the `with`.

    Every Exception is caught, because libraries raise many kinds: zlib.error, EOFError, ArrowException, RuntimeError of
    ArrayRecord, RecursionError of json. An OSError that already names its file is not changed.
    """
    place = Place(path, unit)
    try:
        yield place
    except Exception as e:
        if names_its_file(e):
            raise
        raise Unusable(
            f"{place} cannot be read as {what} ({one_line(e)}). Mend the file, get it again, or narrow the glob."
        ) from e


def names_its_file(e: Exception) -> bool:
    return isinstance(e, Unusable) or (isinstance(e, OSError) and e.filename is not None)


def one_line(e: Exception) -> str:
    return " ".join(str(e).split()) or type(e).__name__
