"""The file of a tokenizer, as a library reads it: every error that comes of it names the file."""

import contextlib
import os
import stat
from collections.abc import Iterator


def version(path: str, *, kind: str) -> tuple[int, ...]:
    """Return what changes with the content of the file: a tokenizer trained anew under the same name is another one.

    Raises:
      ValueError: there is no such file.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as e:  # ValueError: a zero byte in the name
        reason = e.strerror if isinstance(e, OSError) else e
        raise ValueError(f"{path=} cannot be read ({reason}). Name a {kind}.") from e
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path=} is not a file. Name a {kind}.")
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


@contextlib.contextmanager
def naming(path: str, what: str, *, remedy: str) -> Iterator[None]:
    """Raise ValueError naming the file where a library fails on it, in the `with`.

    A panic of `tokenizers`, which is written in Rust, is a BaseException and no Exception. And some damage shows only
    in certain texts, so encoding and decoding stand in such a `with`, too.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as e:
        raise ValueError(f"{path=} {what} ({e}). {remedy}") from e


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep native code off stderr, in the `with`: a panic writes lines there before it is raised."""
    try:
        kept = os.dup(2)
    except OSError:  # stderr is closed
        yield
        return
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
