"""A fake clock, and streams on it. Time passes only from event to event, so a simulation takes none."""

import heapq
import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple


class Clock:
    """Runs actions in the order of their times; those of one time in the order in which they were given."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """Run an action so many seconds from now."""
        if not seconds >= 0:
            raise ValueError(f"{seconds=}: an action cannot be in the past")
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), action))

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Let time pass until nothing is left to do, or a condition holds."""
        while self._events and not until():
            self.now, _, action = heapq.heappop(self._events)
            action()


class Stream:
    """Does one piece of work after another, in the order in which they were asked for."""

    def __init__(self, clock: Clock):
        self._clock, self._free = clock, 0.0

    def do(self, seconds: float, then: Callable[[], None]) -> float:
        """Run an action when work of so many seconds is done. Return when the work begins."""
        begin = max(self._free, self._clock.now)
        self._free = begin + seconds
        self._clock.after(self._free - self._clock.now, then)
        return begin


class Work(NamedTuple):
    """A piece of work of a stream. It begins when the stream is free and all that it needs is done."""

    name: Hashable
    stream: Hashable
    seconds: float
    needs: tuple[Hashable, ...] = ()


class Span(NamedTuple):
    """When a piece of work was done."""

    work: Work
    begin: float
    end: float


def timeline(works: Sequence[Work]) -> dict[Hashable, Span]:
    """Return when each piece of work is done, by its name. A stream does its works in the order of `works`.

    Raises:
        ValueError: some wait for each other for ever, or for one that is not there.
    """
    clock = Clock()
    streams = {work.stream: Stream(clock) for work in works}
    queues = {stream: [work for work in works if work.stream == stream] for stream in streams}
    done: dict[Hashable, Span] = {}
    busy: set[Hashable] = set()

    def advance() -> None:
        for stream, queue in queues.items():
            if stream not in busy and queue and all(need in done for need in queue[0].needs):
                begin(stream, queue.pop(0))

    def begin(stream: Hashable, work: Work) -> None:
        busy.add(stream)
        started = streams[stream].do(work.seconds, lambda: finish(stream, work, started))

    def finish(stream: Hashable, work: Work, started: float) -> None:
        busy.discard(stream)
        done[work.name] = Span(work, started, clock.now)
        advance()

    advance()
    clock.run()
    if len(done) < len(works):
        left = next(work for work in works if work.name not in done)
        raise ValueError(f"{left.name!r} waits for ever for one of {left.needs}: put each work behind what it needs")
    return done
