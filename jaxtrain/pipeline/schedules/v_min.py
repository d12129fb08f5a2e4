"""V-Min: a third of 1F1B's activations, the shortest legs that repeat. Qi et al. (2024), arXiv:2405.15362."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.pipeline.building_block import Legs, v_table
from jaxtrain.pipeline.schedules.base import Schedule
from jaxtrain.pipeline.table import Table


@dataclass(frozen=True, kw_only=True, slots=True)
class VMin(Schedule):
    """Peak floor((p+4)/3) stages' activations; bubble about 2p/3m of the work."""

    paper: ClassVar[str] = "arXiv:2405.15362"

    def table(self, stages: int, microbatches: int) -> Table:
        return v_table(stages, microbatches, legs=Legs(1, 1, 1, 1), limit=2 * ((stages + 4) // 3))
