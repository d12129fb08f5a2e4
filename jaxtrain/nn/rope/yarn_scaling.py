"""YaRN. Peng et al. (2023), arXiv:2309.00071."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from jaxtrain.nn.rope.base import RopeScaling
from jaxtrain.ranges import check_at_least_one, check_positive, check_positive_or_none


@dataclass(frozen=True, kw_only=True, slots=True)
class YarnScaling(RopeScaling):
    """Fast pairs kept, slow ones divided by `factor`, a ramp between, and larger scores. arXiv:2309.00071, section 3.

    Pairs that turn more than `fast` times in `original_length` positions are kept, those that turn less than `slow`
    times are divided. With `truncate` the ramp begins and ends at whole pairs, as in the authors' code and in all
    published models but gpt-oss. `attention_factor` multiplies rotated queries and keys, by default by
    0.1 log(factor) + 1 (eq. 22).
    """

    factor: float
    original_length: int
    fast: float = 32.0
    slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    paper: ClassVar[str] = "arXiv:2309.00071"

    def __post_init__(self):
        check_at_least_one(self, "factor", "original_length")
        check_positive(self, "slow")
        check_positive_or_none(self, "attention_factor")
        if not self.slow < self.fast < math.inf:
            raise ValueError(f"fast={self.fast}: must be above slow={self.slow}")

    def __call__(self, frequencies: np.ndarray, length: int) -> np.ndarray:
        pairs = len(frequencies)
        if pairs < 2:
            raise ValueError(f"YarnScaling needs heads of which at least 4 elements are rotated, not {2 * pairs}")
        if frequencies[-1] == frequencies[0]:
            raise ValueError("theta=1.0: YarnScaling needs pairs that turn at different speeds, so another theta")
        first, last = self._pair(frequencies, self.fast), self._pair(frequencies, self.slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * pairs - 1)
        last = last + 0.001 if first == last else last  # as the authors' code does, for a ramp of no length
        divided = np.clip((np.arange(pairs) - first) / (last - first), 0.0, 1.0)
        return frequencies * (1 - divided + divided / self.factor)

    def _pair(self, frequencies: np.ndarray, turns: float) -> float:
        """Return which pair, as a real number, turns so often in the original length."""
        log_step = math.log(frequencies[-1] / frequencies[0]) / (len(frequencies) - 1)  # the same between all pairs
        return math.log(2 * math.pi * turns / self.original_length) / log_step

    def amplitude(self) -> float:
        return 0.1 * math.log(self.factor) + 1.0 if self.attention_factor is None else self.attention_factor
