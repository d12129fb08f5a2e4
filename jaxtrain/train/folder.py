"""The run folder: config.gin, kept_files/, metrics.jsonl, samples.txt, tensorboard/, checkpoints/."""

import contextlib
import errno
import itertools
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CONFIG = "config.gin"
FILES = "kept_files"  # copies of what config.gin names by path
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class SaveError(RuntimeError):
    """A run could not be written, the disk being full perhaps; what was saved before is unharmed."""

    def __init__(self, what: str, cause: BaseException):
        remedy = (
            "make room, or move the run to a larger disk"
            if is_full(cause)
            else "see to it that the folder can be written, or name another one"
        )
        super().__init__(
            f"{what}: {reason(cause)}. What was saved before is unharmed; "
            f"{remedy}, and the same command goes on from there"
        )


@contextlib.contextmanager
def saving(what: str) -> Iterator[None]:
    """Raise SaveError, beginning with `what`, where the operating system cannot write in the `with`."""
    try:
        yield
    except OSError as error:
        raise SaveError(what, error) from error


def reason(error: BaseException) -> str:
    """Return the operating system's words for why a file could not be written, where they can be found."""
    code = _os_code(error)
    if code is not None:
        return os.strerror(code)
    *_, first = _chain(error)
    return " ".join(str(first).split()) or type(first).__name__


def is_full(error: BaseException) -> bool:
    """Tell whether it was for want of room that a file could not be written."""
    return _os_code(error) in _NO_ROOM


def _os_code(error: BaseException) -> int | None:
    """Return the number of the operating system's error; of several, the one that says there is no room."""
    codes = [code for at in _chain(error) if (code := _own_os_code(at))]
    return next((code for code in codes if code in _NO_ROOM), codes[0] if codes else None)


def _own_os_code(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    code = re.search(r"os_error_code='(\d+)'", str(error))  # in the text of errors from Orbax's own writer
    return int(code[1]) if code else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, the one it came from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a small file whole and to the disk, or leave what is there as it is.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Have the disk know which files are in a folder; some network file systems see to it themselves and refuse."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def free_name(folder: Path, name: str) -> Path:
    """Return a path in a folder at which nothing is: invalid-12-1 or -2 or ... for "invalid-12-{}"."""
    paths = (folder / name.format(number) for number in itertools.count(1))
    return next(path for path in paths if not os.path.lexists(path))


@dataclass(frozen=True, slots=True)
class RunFolder:
    path: Path

    @property
    def config(self) -> Path:
        return self.path / CONFIG

    @property
    def files(self) -> Path:
        return self.path / FILES

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.txt"

    @property
    def profile(self) -> Path:
        return self.path / "profile"

    def add_sample(self, step: int, text: str) -> None:
        with (
            saving(f"a sample could not be written to {self.samples}"),
            self.samples.open("a", encoding="utf-8") as file,
        ):
            file.write(f"--- step {step} ---\n{text}\n")

    def cut_samples(self, *, step: int) -> None:
        """Drop the samples of later steps, which a run that goes on from `step` writes anew."""
        if not self.samples.is_file():
            return
        with saving(f"later samples could not be cut off from {self.samples}"):
            written = self.samples.read_bytes()
            heads = re.finditer(rb"^--- step (\d+) ---$", written, re.MULTILINE)
            end = next((head.start() for head in heads if int(head[1]) > step), len(written))
            os.truncate(self.samples, end)

    @property
    def is_used(self) -> bool:
        """Whether a run has begun here."""
        return self.config.exists() or self.checkpoints.exists()

    @property
    def is_run(self) -> bool:
        """Whether what is here was written by a run, and is no folder of the same name that somebody else made."""
        finished = self.checkpoints.glob("*/manifest.json")
        return self.config.exists() or self.metrics.is_file() or any(path.is_file() for path in finished)

    def write_config(self, text: str) -> None:
        """Write the operative configuration, whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.config, text)

    def clear(self) -> None:
        """Remove the run that is here, if one is, and nothing that is not a run's.

        Raises:
            OSError: it cannot be removed.
        """
        if not self.is_run:
            return
        for name in (FILES, "checkpoints", "tensorboard", "profile"):
            _remove(self.path / name)
        for name in (CONFIG, "metrics.jsonl", "samples.txt", "wandb_id.txt"):
            (self.path / name).unlink(missing_ok=True)


def _remove(path: Path) -> None:
    """Remove a folder, or what lies in its place; of a folder on another disk, reached by a link, what it holds."""
    if path.is_symlink() and path.is_dir():
        for inner in path.iterdir():
            _remove_plainly(inner)
    else:
        _remove_plainly(path)


def _remove_plainly(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
