"""Dynamic NTK-aware scaling. Peng et al. (2023), arXiv:2309.00071, appendix B, in the form of `transformers`."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from jaxtrain.nn.rope.base import RopeScaling
from jaxtrain.ranges import check_at_least_one


@dataclass(frozen=True, kw_only=True, slots=True)
class DynamicScaling(RopeScaling):
    """A base that grows with the length of the row, beyond `original_length`. Peng et al. (2023), arXiv:2309.00071.

    The base is theta (factor * length / original_length - (factor - 1))^(K/(K-2)). The length is that of the row that
    a model is given, not of the documents in it. A row of at most `original_length` tokens is not scaled.
    """

    factor: float
    original_length: int
    paper: ClassVar[str] = "arXiv:2309.00071"

    def __post_init__(self):
        check_at_least_one(self, "factor", "original_length")

    def __call__(self, frequencies: np.ndarray, length: int) -> np.ndarray:
        pairs = len(frequencies)
        if pairs < 2:
            raise ValueError(f"DynamicScaling needs heads of which at least 4 elements are rotated, not {2 * pairs}")
        if length <= self.original_length:
            return frequencies
        growth = self.factor * length / self.original_length - (self.factor - 1)
        return frequencies * growth ** -(np.arange(pairs) / (pairs - 1))
