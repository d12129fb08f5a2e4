"""LongRoPE: a factor for every pair, found by search. Ding et al. (2024), arXiv:2402.13753."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from jaxtrain.nn.rope.base import RopeScaling
from jaxtrain.ranges import check_at_least_one, check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class LongRopeScaling(RopeScaling):
    """Each frequency divided by a factor of its own. Ding et al. (2024), arXiv:2402.13753.

    Rows of more than `original_length` tokens take the factors `long`, others `short`. The length is that of the row
    that a model is given, not of the documents in it. `attention_factor` multiplies rotated queries and keys; of
    models stretched by s, it is sqrt(1 + log(s) / log(original_length)).
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_length: int
    attention_factor: float
    paper: ClassVar[str] = "arXiv:2402.13753"

    def __post_init__(self):
        check_at_least_one(self, "original_length")
        check_positive(self, "attention_factor")
        for name in ("short", "long"):
            if not all(factor > 0 for factor in getattr(self, name)):
                raise ValueError(f"{name}={getattr(self, name)}: every factor must be above 0")
        if len(self.short) != len(self.long):
            raise ValueError(f"long has {len(self.long)} factors and short {len(self.short)}: each needs one a pair")

    def __call__(self, frequencies: np.ndarray, length: int) -> np.ndarray:
        if len(self.short) != len(frequencies):
            raise ValueError(
                f"LongRopeScaling has {len(self.short)} factors for {len(frequencies)} pairs of elements that are "
                "rotated: give one factor a pair"
            )
        return frequencies / np.asarray(self.long if length > self.original_length else self.short)

    def amplitude(self) -> float:
        return self.attention_factor
