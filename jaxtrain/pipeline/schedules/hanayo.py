"""Hanayo: the model in waves over the stages, one weight copy. Liu et al. (2023), arXiv:2308.15762.

The paper gives the wave placement and per-device action lists for as many microbatches as stages. Here the lists come
from list scheduling, the oldest microbatch first, which also covers more microbatches.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.pipeline.orders import by_age
from jaxtrain.pipeline.placement import require_positive, wave
from jaxtrain.pipeline.schedules.base import Schedule
from jaxtrain.pipeline.table import Table


@dataclass(frozen=True, kw_only=True, slots=True)
class Hanayo(Schedule):
    """More waves, smaller chunks and bubble, and 2w(p-1) transfers of a microbatch's forward."""

    waves: int = 2
    paper: ClassVar[str] = "arXiv:2308.15762"

    def table(self, stages: int, microbatches: int) -> Table:
        require_positive(microbatches=microbatches)
        return by_age(wave(stages, self.waves), microbatches)
