"""A trace of a few steps for the profiler's viewers, on request."""

from pathlib import Path

import jax

WARM_UP = 2  # steps: the one that compiles, and the one that waited for it


class Profiler:
    """In a `with`, writes one trace of `steps` steps of this process, after its first two, into a folder."""

    def __init__(self, folder: Path, steps: int):
        self._folder, self._steps = folder, steps
        self._made = 0
        self._tracing = False

    def step_done(self, state) -> None:
        """Count a step that was started. `state` is what it returned."""
        self._made += 1
        if self._steps and self._made == WARM_UP:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._tracing = True
        elif self._tracing and self._made == WARM_UP + self._steps:
            jax.block_until_ready(state)
            self._stop()

    def _stop(self) -> None:
        self._tracing = False
        jax.profiler.stop_trace()

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_) -> None:
        if self._tracing:
            self._stop()
