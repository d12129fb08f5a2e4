"""Output of a command to a terminal, pipe or file that may be closed (`| head`), full, or limited to ASCII.

None of these ends a run. Output that cannot be written is dropped, and letters that the encoding lacks are escaped.
Ctrl-C ends a run at any point, with one line.
"""

import contextlib
import errno
import io
import os
import signal
import sys
import threading
from typing import NamedTuple, NoReturn, TextIO

INTERRUPTED = 130  # the exit code of shells for Ctrl-C
CLEANING_SECONDS = 10  # for removing temporary folders after Ctrl-C


class Unfailing(io.FileIO):
    """The file of a descriptor. Output that the system refuses is dropped; `failure` is the first error."""

    failure: OSError | None = None
    muted = False

    def write(self, data) -> int:
        if self.muted:
            return len(data)
        try:
            return super().write(data) or len(data)  # None from a full pipe that does not block
        except OSError as error:
            self.failure = self.failure or error
            return len(data)


class Streams(NamedTuple):
    """The files under sys.stdout and sys.stderr."""

    output: Unfailing
    errors: Unfailing

    @property
    def lost(self) -> OSError | None:
        """The error that lost output; None if all was written, or if the reader closed the pipe."""
        failure = self.output.failure
        return None if failure is None or failure.errno == errno.EPIPE else failure


def shield() -> Streams:
    """Replace sys.stdout and sys.stderr by streams whose writes never fail."""
    _open_the_closed()
    sys.stdout, output = _shielded(1, sys.stdout)
    sys.stderr, errors = _shielded(2, sys.stderr)
    return Streams(output, errors)


def _shielded(descriptor: int, before: TextIO | None) -> tuple[TextIO, Unfailing]:
    raw = Unfailing(descriptor, "w", closefd=False)
    encoding, line_buffering, write_through = "utf-8", True, False
    if isinstance(before, io.TextIOWrapper):
        encoding, line_buffering, write_through = before.encoding, before.line_buffering, before.write_through
    return (
        io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=encoding,
            errors="backslashreplace",
            line_buffering=line_buffering,
            write_through=write_through,
        ),
        raw,
    )


def _open_the_closed() -> None:
    """Open os.devnull for those of the descriptors 0 to 2 that are closed.

    Otherwise the next opened files would take these numbers, and output would be written into them.
    """
    for descriptor in range(3):
        with contextlib.suppress(OSError):
            os.fstat(descriptor)
            continue
        os.open(os.devnull, os.O_RDWR)  # takes the lowest free number


class Interruption:
    """From now on Ctrl-C prints one line and raises KeyboardInterrupt, so that temporary folders are removed.

    The exception may not arrive: callbacks of C libraries print and drop it, and the import of a module may replace it
    by another. So nothing more is printed, and the process ends after CLEANING_SECONDS in any case, or at once with a
    second Ctrl-C. An ignored SIGINT stays ignored.
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
            os.write(2, b"jaxtrain: interrupted\n")  # not by sys.stderr, which the signal may have interrupted
        self._errors.muted = True
        raise KeyboardInterrupt
