"""Interleaved 1F1B with the backward split, at 1F1B's memory. Qi et al. (2023), arXiv:2401.10241, section 2.2 (ZB-H1).

This is the order of `ScheduleInterleavedZeroBubble` in PyTorch. The forwards before the first backward are those of
interleaved 1F1B with half the distance between stages, since B alone is on the way back. Stage s defers its W by s
microbatches of a chunk, so every stage keeps vp chunks (up to W). One chunk a stage is ZB-H1.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.pipeline.orders import grouped, interleaved_warmup
from jaxtrain.pipeline.placement import loop, require_positive
from jaxtrain.pipeline.schedules.base import Schedule
from jaxtrain.pipeline.table import Action, Table, backward, forward, of_stages, weight


@dataclass(frozen=True, kw_only=True, slots=True)
class InterleavedZeroBubble(Schedule):
    """Bubble (p-1)/(3vm+p-1) of all time at F = B = W and m >= p; peak p stages' activations if p divides m."""

    chunks_per_stage: int = 2
    paper: ClassVar[str] = "arXiv:2401.10241"

    def table(self, stages: int, microbatches: int) -> Table:
        require_positive(stages=stages, chunks_per_stage=self.chunks_per_stage, microbatches=microbatches)
        rows = (_row(stage, stages, microbatches, self.chunks_per_stage) for stage in range(stages))
        return of_stages(loop(stages, self.chunks_per_stage), rows)


def _row(stage: int, stages: int, microbatches: int, chunks_per_stage: int) -> list[Action]:
    chunks = range(stage, stages * chunks_per_stage, stages)
    forwards = grouped(stages, microbatches, chunks)
    backwards = grouped(stages, microbatches, reversed(chunks))
    warmup = interleaved_warmup(stages, microbatches, chunks_per_stage) + stages - 1 - stage
    row = [forward(*unit) for unit in forwards[:warmup]]
    for count, unit in enumerate(backwards):
        row += [forward(*unit) for unit in forwards[warmup + count : warmup + count + 1]]
        row.append(backward(*unit))
        row += [weight(*backwards[count - stage])] if count >= stage else []
    return row + [weight(*unit) for unit in backwards[max(len(backwards) - stage, 0) :]]
