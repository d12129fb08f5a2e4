"""Position interpolation. Chen et al. (2023), arXiv:2306.15595."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from jaxtrain.nn.rope.base import RopeScaling
from jaxtrain.ranges import check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearScaling(RopeScaling):
    """All positions divided by `factor`. Chen et al. (2023), arXiv:2306.15595."""

    factor: float
    paper: ClassVar[str] = "arXiv:2306.15595"

    def __post_init__(self):
        check_positive(self, "factor")

    def __call__(self, frequencies: np.ndarray, length: int) -> np.ndarray:
        return frequencies / self.factor
