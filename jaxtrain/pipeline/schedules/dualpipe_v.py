"""DualPipeV: F of one chunk beside B of the other, on a V placement with one weight copy.

DeepSeek-AI (2025), github.com/deepseek-ai/DualPipe, after DualPipe in arXiv:2412.19437 and the cut in half of Sea AI
Lab ("DualPipe could be better without the dual"). Each stage runs eight phases whose lengths depend on its index. The
middle one pairs F of the first chunk with B of the second and the other way round, so that the communication of one
overlaps the computation of the other. Some backwards of the start and the end are split, their W in first-in first-out
order.
"""

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.pipeline.placement import require_positive, v_shape
from jaxtrain.pipeline.schedules.base import Schedule, require_at_least
from jaxtrain.pipeline.table import Action, Table, backward, forward, fused, of_stages, weight


@dataclass(frozen=True, kw_only=True, slots=True)
class DualPipeV(Schedule):
    """Peak 2p+1 chunks on a stage; needs two microbatches a stage."""

    paper: ClassVar[str] = "arXiv:2412.19437"

    def table(self, stages: int, microbatches: int) -> Table:
        require_positive(stages=stages)
        require_at_least(microbatches, 2 * stages, "two on every stage fill the two directions")
        return of_stages(v_shape(stages), (_Row(stage, stages).phases(microbatches) for stage in range(stages)))


class _Row:
    """One stage's list of actions, built phase by phase; microbatches pass each of its two chunks in order."""

    def __init__(self, stage: int, stages: int):
        self.stage, self.stages = stage, stages
        self.chunks = (stage, 2 * stages - 1 - stage)
        self.actions: list[Action] = []
        self.counts: Counter[tuple[str, int]] = Counter()
        self.deferred: list[Action] = []

    def phases(self, microbatches: int) -> list[Action]:
        before, behind = self.stage, self.stages - 1 - self.stage
        self._repeat(2 * behind, "F0")
        self._repeat(before + 1, "F0 F1")
        self._repeat(behind, "B1 W F1")
        self._repeat(microbatches - 2 * self.stages + before + 1, "F0 BW1 F1 BW0")
        self._repeat(behind, "BW1 F1 BW0")
        self._cool_down(before + 1)
        self._repeat(behind, "W B0")
        self._repeat(before + 1, "W")
        return self.actions

    def _cool_down(self, count: int) -> None:
        """Add backwards of both chunks in turn, the later half of them split."""
        half, odd = count // 2, self.stage % 2
        self._repeat(half, "BW1 BW0")
        if half < count:
            self._repeat(1, "B1 B0" if odd else "BW1 B0")
            self._repeat(count - half - 1, "B1 B0")

    def _repeat(self, count: int, steps: str) -> None:
        for step in steps.split() * count:
            self._step(step)

    def _step(self, step: str) -> None:
        if step == "W":
            self.actions.append(self.deferred.pop(0))
            return
        unit, phase = step[:-1], int(step[-1])
        passed = "F" if unit == "F" else "B"
        piece = (self.counts[passed, phase], self.chunks[phase])
        self.counts[passed, phase] += 1
        self.actions.append({"F": forward, "B": backward, "BW": fused}[unit](*piece))
        if unit == "B":
            self.deferred.append(weight(*piece))
