"""The run folder: config.gin, kept_files/, metrics.jsonl, samples.txt, routing/, tensorboard/, checkpoints/."""

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
FILES = "kept_files"  # copies of the files that config.gin names
COUNTS = ".npz"  # the ending of the files in routing/, which are named by their steps
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class SaveError(RuntimeError):
    """A run could not be written, for example because the disk is full. What was saved before is unharmed."""

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
    """Turn an OSError in the `with` into a SaveError that begins with `what`."""
    try:
        yield
    except OSError as error:
        raise SaveError(what, error) from error


def reason(error: BaseException) -> str:
    """Return why a file could not be written: the operating system's message if any, else that of the first error."""
    code = _os_code(error)
    if code is not None:
        return os.strerror(code)
    *_, first = _chain(error)
    return " ".join(str(first).split()) or type(first).__name__


def is_full(error: BaseException) -> bool:
    """Tell whether a file could not be written because there is no room."""
    return _os_code(error) in _NO_ROOM


def _os_code(error: BaseException) -> int | None:
    """Return the errno of a chain of errors. Of several, take the one that says there is no room."""
    codes = [code for at in _chain(error) if (code := _own_os_code(at))]
    return next((code for code in codes if code in _NO_ROOM), codes[0] if codes else None)


def _own_os_code(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    code = re.search(r"os_error_code='(\d+)'", str(error))  # in the text of errors from Orbax's own writer
    return int(code[1]) if code else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, the error that caused it, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a small file atomically, and flush it to the disk. On failure the old file stays as it is.

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
    """Flush the list of a folder's files to the disk. Some network file systems do that themselves and refuse."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def free_name(folder: Path, name: str) -> Path:
    """Return the first unused path in a folder: damaged-12-1, or -2, and so on, for "damaged-12-{}"."""
    paths = (folder / name.format(number) for number in itertools.count(1))
    return next(path for path in paths if not os.path.lexists(path))


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The folder of a run. Raises ValueError for an address: `Path` takes gs://bucket/run for a folder named `gs:`."""

    path: Path

    def __post_init__(self):
        if found := re.match(r"([a-z][a-z0-9]+):/(.*)", str(self.path)):
            address = f"{found[1]}://{found[2]}"
            raise ValueError(
                f"{address}: a run is written to a folder and not to an address; mount the bucket and name its path"
            )

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
    def routing(self) -> Path:
        return self.path / "routing"

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
        """Remove the samples of later steps. A run that goes on from `step` writes them again."""
        if not self.samples.is_file():
            return
        with saving(f"later samples could not be cut off from {self.samples}"):
            written = self.samples.read_bytes()
            heads = re.finditer(rb"^--- step (\d+) ---$", written, re.MULTILINE)
            end = next((head.start() for head in heads if int(head[1]) > step), len(written))
            os.truncate(self.samples, end)

    def add_routing(self, step: int, content: bytes) -> None:
        """Write where tokens went after a step."""
        with saving(f"the counts of experts could not be written to {self.routing}"):
            self.routing.mkdir(exist_ok=True)
            write_whole(self.routing / f"{step}{COUNTS}", content)

    def routing_files(self) -> dict[int, Path]:
        """Return the files that `add_routing` wrote, by their steps."""
        found = {path.stem: path for path in self.routing.glob(f"*{COUNTS}")}
        return {int(step): found[step] for step in sorted(filter(str.isdecimal, found), key=int)}

    def cut_routing(self, *, step: int) -> None:
        """Remove the counts of later steps. A run that goes on from `step` writes them again."""
        with saving(f"later counts could not be removed from {self.routing}"):
            for later, path in self.routing_files().items():
                if later > step:
                    path.unlink()

    @property
    def is_used(self) -> bool:
        """Whether a run has begun here."""
        return self.config.exists() or self.checkpoints.exists()

    @property
    def is_run(self) -> bool:
        """Whether a run wrote what is here. If not, somebody else made a folder of the same name."""
        finished = self.checkpoints.glob("*/manifest.json")
        return self.config.exists() or self.metrics.is_file() or any(path.is_file() for path in finished)

    def write_config(self, text: str) -> None:
        """Write the operative configuration atomically."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.config, text)

    def clear(self) -> None:
        """Remove the files of the run that is here, if one is, and no others.

        Raises:
            OSError: it cannot be removed.
        """
        if not self.is_run:
            return
        for name in (FILES, "checkpoints", "routing", "tensorboard", "profile"):
            _remove(self.path / name)
        for name in (CONFIG, "metrics.jsonl", "metrics.csv", "samples.txt", "wandb_id.txt", "mlflow_id.txt"):
            (self.path / name).unlink(missing_ok=True)


def _remove(path: Path) -> None:
    """Remove a folder, or a file of its name. If it is a link to a folder, on another disk perhaps, empty that."""
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
