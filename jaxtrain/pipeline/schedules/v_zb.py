"""V-ZB: 1F1B's activations, the same on every stage, and no idle time inside. Qi et al. (2024), arXiv:2405.15362."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.pipeline.building_block import Legs, v_table
from jaxtrain.pipeline.schedules.base import Schedule
from jaxtrain.pipeline.table import Table


@dataclass(frozen=True, kw_only=True, slots=True)
class VZB(Schedule):
    """No idle unit inside a stage's own span at F = B = W and m >= 2p; peak p stages' activations."""

    paper: ClassVar[str] = "arXiv:2405.15362"

    def table(self, stages: int, microbatches: int) -> Table:
        return v_table(stages, microbatches, legs=Legs(4, 2, 4, 2), limit=2 * stages)
