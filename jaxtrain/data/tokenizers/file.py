"""The file of a tokenizer, which a library reads. All errors about it name the file."""

import contextlib
import os
import stat
from collections.abc import Iterator


def version(path: str, *, kind: str) -> tuple[int, ...]:
    """Return a version of the file, which changes when its content does, so that caches read it again.

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
    """Raise ValueError that names the file where a library fails in the `with`.

    Every BaseException is caught, because a Rust panic in `tokenizers` is no Exception. Encoding and decoding also need
    such a `with`: some damage of a file causes errors only for certain texts.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as e:
        raise ValueError(f"{path=} {what} ({e}). {remedy}") from e


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what native code writes to stderr in the `with`: a Rust panic writes lines there before it is raised."""
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
