"""V-Half: half of 1F1B's activations. Qi et al. (2024), arXiv:2405.15362."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.pipeline.building_block import Legs, v_table
from jaxtrain.pipeline.schedules.base import Schedule
from jaxtrain.pipeline.table import Table


@dataclass(frozen=True, kw_only=True, slots=True)
class VHalf(Schedule):
    """Peak floor((p+2)/2) stages' activations; bubble about p/2m of the work."""

    paper: ClassVar[str] = "arXiv:2405.15362"

    def table(self, stages: int, microbatches: int) -> Table:
        return v_table(stages, microbatches, legs=Legs(1, 2, 1, 2), limit=2 * ((stages + 2) // 2))
