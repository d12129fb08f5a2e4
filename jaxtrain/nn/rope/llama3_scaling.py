"""The scaling of Llama 3.1. The Llama 3 Herd of Models (2024), arXiv:2407.21783."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from jaxtrain.nn.rope.base import RopeScaling
from jaxtrain.ranges import check_at_least_one, check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class Llama3Scaling(RopeScaling):
    """Long wavelengths divided by `factor`, short ones kept, a linear blend between.

    The Llama 3 Herd of Models (2024), arXiv:2407.21783: `low` and `high` count the periods of a wavelength in the
    `original_length`, on which the model was first trained.
    """

    factor: float = 8.0
    low: float = 1.0
    high: float = 4.0
    original_length: int = 8192
    paper: ClassVar[str] = "arXiv:2407.21783"

    def __post_init__(self):
        check_positive(self, "factor", "low")
        check_at_least_one(self, "original_length")
        if not self.low < self.high < math.inf:
            raise ValueError(f"high={self.high}: must be above low={self.low}")

    def __call__(self, frequencies: np.ndarray, length: int) -> np.ndarray:
        turns = self.original_length * frequencies / (2 * math.pi)
        kept = np.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        return frequencies * (kept + (1 - kept) / self.factor)
