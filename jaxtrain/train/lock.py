"""The lock of a run folder: a file that names the process that trains there, so that only one run does.

The first process of a run holds it. On one machine, and on network file systems that share locks, the system's lock
(flock) tells at once whether it is held, and a killed process no longer holds it. On other file systems a machine sees
only its own locks. There a lock whose holder is on another machine is watched for a while: a holder touches the file
every few seconds, so one that does not is gone.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

from jaxtrain.train import distributed
from jaxtrain.train.folder import saving

LOCK = "lock"
BEAT_SECONDS, WATCH_SECONDS = 5.0, 20.0
log = logging.getLogger(__name__)


class Holder(NamedTuple):
    host: str
    process: int
    began: str

    @property
    def is_here(self) -> bool:
        return self.host == socket.gethostname()

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.began}"


class RunLock:
    """In a `with`, no other run trains in the folder. A `with` of the same lock inside it has no effect.

    All processes of a run enter together.

    Raises:
        ValueError: another run is in the folder.
        SaveError: the folder cannot be written.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._depth = 0
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if not self._depth:
            distributed.by_first(self._take)
        self._depth += 1
        return self

    def __exit__(self, *_) -> None:
        self._depth -= 1
        if not self._depth:
            self._held.close()

    def _take(self) -> None:
        with saving(f"{self._folder} cannot be written"), contextlib.ExitStack() as held:
            held.enter_context(_made(self._folder))
            held.enter_context(_locked(self._folder / LOCK))
            self._held = held.pop_all()


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder and its parents. At the end, remove those that were made here and are still empty."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for path in new:
                path.rmdir()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file in the `with`, and remove it at the end."""
    file = _open_locked(path)
    try:
        _check_holder_is_gone(path)
        try:
            _write_holder(file)
            with _heartbeat(file):
                yield
        finally:
            with contextlib.suppress(OSError):  # the disk is read-only by now: a file that nobody holds is harmless
                if _is_at(path, file):
                    path.unlink()
    finally:
        os.close(file)


def _open_locked(path: Path) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(path, file)
        except BaseException:
            os.close(file)
            raise
        if _is_at(path, file):
            return file
        os.close(file)  # the previous holder removed it after it was opened


def _lock(path: Path, file: int) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(_refusal(path, _holder(path))) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        holder = _holder(path)  # a file system without locks: go by what the file says
        if holder and holder.is_here and _runs(holder.process):
            raise ValueError(_refusal(path, holder)) from None


def _check_holder_is_gone(path: Path) -> None:
    """Raise ValueError if the holder that the file names is still there, though the file was not locked."""
    holder = _holder(path)
    if holder is None:
        return
    if not holder.is_here:
        log.warning("%s: watching for %g s whether %s is still there", path, WATCH_SECONDS, holder)
        if _is_touched(path):
            raise ValueError(_refusal(path, holder))
    log.warning("%s: %s is gone, and this process takes its place", path, holder)


def _refusal(path: Path, holder: Holder | None) -> str:
    who = holder or "a process that has just begun"
    return f"{path.parent} is in use by {who}: wait until it has ended, stop it, or name another folder, --run FOLDER"


def _holder(path: Path) -> Holder | None:
    """Return the holder that the file names; None if that was not fully written."""
    try:
        return Holder(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def _write_holder(file: int) -> None:
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(Holder(socket.gethostname(), os.getpid(), now)._asdict()).encode(), 0)
    os.fsync(file)


@contextlib.contextmanager
def _heartbeat(file: int) -> Iterator[None]:
    """Touch the file every `BEAT_SECONDS` in the `with`, for processes on other machines to see."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(file)

    thread = threading.Thread(target=beat, name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _is_touched(path: Path) -> bool:
    """Watch a file for `WATCH_SECONDS`, and tell whether anybody touches it."""
    before, end = _touched(path), time.monotonic() + WATCH_SECONDS
    while time.monotonic() < end:
        time.sleep(WATCH_SECONDS / 20)
        if _touched(path) != before:
            return True
    return False


def _touched(path: Path) -> int:
    with path.open("rb") as file:  # opening it makes a network file system ask its server
        return os.fstat(file.fileno()).st_mtime_ns


def _is_at(path: Path, file: int) -> bool:
    """Tell whether an open file is still the one at a path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it runs, as another user
    return True
