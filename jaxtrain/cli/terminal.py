"""What a command says, to a terminal, pipe or file that may be gone (`| head`), full, or without letters but ASCII's.

None of that may end a run: what cannot be shown is dropped, and letters that the encoding lacks are escaped. Ctrl-C
does, with one line, whatever the run is at.
"""

import contextlib
import errno
import io
import os
import signal
import sys
import threading
from typing import NamedTuple, NoReturn, TextIO

INTERRUPTED = 130  # the exit code, as shells have it
CLEANING_SECONDS = 10  # after Ctrl-C


class Unfailing(io.FileIO):
    """The file of a descriptor. Drops what the system does not take; `failure` is the first reason it gave."""

    failure: OSError | None = None
    muted = False

    def write(self, data) -> int:
        if self.muted:
            return len(data)
        try:
            return super().write(data) or len(data)  # None: a pipe that is full and does not wait
        except OSError as error:
            self.failure = self.failure or error
            return len(data)


class Streams(NamedTuple):
    """The files under sys.stdout and sys.stderr."""

    output: Unfailing
    errors: Unfailing

    @property
    def lost(self) -> OSError | None:
        """Why output that somebody waits for did not arrive; None if it did, or if nobody wanted more of it."""
        failure = self.output.failure
        return None if failure is None or failure.errno == errno.EPIPE else failure


def shield() -> Streams:
    """Let no write to sys.stdout or sys.stderr fail from now on."""
    _open_the_closed()
    sys.stdout, output = _shielded(1, sys.stdout)
    sys.stderr, errors = _shielded(2, sys.stderr)
    return Streams(output, errors)


def _shielded(descriptor: int, before: TextIO | None) -> tuple[TextIO, Unfailing]:
    raw = Unfailing(descriptor, "w", closefd=False)
    encoding, line_buffering = ("utf-8", True) if before is None else (before.encoding, before.line_buffering)
    return (
        io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=encoding,
            errors="backslashreplace",
            line_buffering=line_buffering,
            write_through=before is not None and before.write_through,
        ),
        raw,
    )


def _open_the_closed() -> None:
    """Give descriptors 0 to 2 to nothing where they are closed, or the next files opened were written to as these."""
    for descriptor in range(3):
        with contextlib.suppress(OSError):
            os.fstat(descriptor)
            continue
        os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free


class Interruption:
    """From now on Ctrl-C says so, in one line, and raises KeyboardInterrupt, so that temporary folders are removed.

    In callbacks of C libraries the exception is printed and lost, in the initialisation of a module it becomes another:
    so nothing more is printed, and the process ends in a while in any case, at once with a second Ctrl-C. Where SIGINT
    is ignored, it stays so.
    """

    def __init__(self, errors: Unfailing):
        self.asked, self._errors = False, errors
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, number, frame) -> NoReturn:
        if self.asked:
            os._exit(INTERRUPTED)
        self.asked = True
        end = threading.Timer(CLEANING_SECONDS, os._exit, (INTERRUPTED,))
        end.daemon = True
        end.start()
        with contextlib.suppress(OSError):
            os.write(2, b"jaxtrain: interrupted\n")  # sys.stderr might be at a write of its own
        self._errors.muted = True
        raise KeyboardInterrupt
