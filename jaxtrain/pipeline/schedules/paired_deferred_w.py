"""Paired interleaved with the backward split, its W in the ticks that have room.

In the paired schedule a stage has no F in up to p-1 ticks at the end of the forwards, while others still have one, and
no B in up to p-1 ticks at the very end: p-1 ticks in all. A W there costs nothing if it is no longer than F and B. So
p-1 of the W are deferred to these ticks, and the others run one a tick on all stages together:

    lost time (p-1)(F+B-W)/v    for W <= F, W <= B and m >= 2p; with fewer microbatches some W find no such tick

The fused paired schedule loses (p-1)(F+B+W)/v. Peak ((v+2)p-2)/v stages' activations, counted up to W.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.pipeline.orders import grouped
from jaxtrain.pipeline.placement import loop, require_positive
from jaxtrain.pipeline.schedules.base import Schedule, require_multiple
from jaxtrain.pipeline.table import Action, Table, backward, forward, of_stages, weight


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedDeferredW(Schedule):
    """Meant for tick mode with two W slots a tick."""

    chunks_per_stage: int = 2
    paper: ClassVar[str] = "of this project, after arXiv:2401.10241"

    def table(self, stages: int, microbatches: int) -> Table:
        require_positive(stages=stages, chunks_per_stage=self.chunks_per_stage, microbatches=microbatches)
        if self.chunks_per_stage > 1:
            require_multiple(microbatches, stages, "groups of one microbatch a stage go through a chunk together")
        rows = (_row(stage, stages, microbatches, self.chunks_per_stage) for stage in range(stages))
        return of_stages(loop(stages, self.chunks_per_stage), rows)


def _row(stage: int, stages: int, microbatches: int, chunks_per_stage: int) -> list[Action]:
    chunks = range(stage, stages * chunks_per_stage, stages)
    forwards = grouped(stages, microbatches, chunks)
    backwards = grouped(stages, microbatches, reversed(chunks))
    count, behind = len(forwards), stages - 1 - stage
    first_backward = chunks_per_stage * stages - 1 + behind
    last_backward_of_all = chunks_per_stage * stages - 1 + count - 1 + stages - 1
    row: list[Action] = []
    weights = 0
    for tick in range(last_backward_of_all + 1):
        at, done = tick - stage, tick - first_backward
        row += [forward(*forwards[at])] if 0 <= at < count else []
        row += [backward(*backwards[done])] if 0 <= done < count else []
        together = tick >= chunks_per_stage * stages - 1 + 2 * (stages - 1)
        without_forward = count <= at < count + behind
        without_backward = done >= count
        room = min(together + without_forward + without_backward, min(done + 1, count) - weights)
        row += [weight(*unit) for unit in backwards[weights : weights + max(room, 0)]]
        weights += max(room, 0)
    return row + [weight(*unit) for unit in backwards[weights:]]
