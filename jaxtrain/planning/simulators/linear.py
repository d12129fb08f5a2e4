"""Costs alpha + beta n, the model of Hockney (1994) for messages: a start-up time, and a time for each byte."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Linear:
    """Seconds of work on n bytes or tokens: alpha + beta n, and 0 for nothing."""

    alpha: float
    beta: float

    def __post_init__(self):
        if not (self.alpha >= 0 and self.beta >= 0):
            raise ValueError(f"alpha={self.alpha}, beta={self.beta}: both must be at least 0")

    def __call__(self, n: float) -> float:
        return self.alpha + self.beta * n if n else 0.0

    def most(self, seconds: float) -> int:
        """Return the most bytes that take at most so many seconds, 0 where none do."""
        if not self.beta:
            raise ValueError("beta=0: any number of bytes takes as long")
        return max(int((seconds - self.alpha) / self.beta), 0)


def fit(sizes: Sequence[float], seconds: Sequence[float]) -> Linear:
    """Return the cost that fits measurements with least squares, by relative error. Neither part is below 0.

    Raises:
        ValueError: there are fewer than two sizes.
    """
    if len(set(sizes)) < 2:
        raise ValueError(f"sizes={list(sizes)}: measure two sizes at least")
    n, t = np.asarray(sizes, float), np.asarray(seconds, float)
    columns = np.stack([1 / t, n / t], axis=1)
    alpha, beta = np.linalg.lstsq(columns, np.ones(len(t)), rcond=None)[0]
    if alpha < 0:  # the best line through the origin
        alpha, beta = 0.0, (n / t).sum() / ((n / t) ** 2).sum()
    if beta < 0:
        alpha, beta = (1 / t).sum() / ((1 / t) ** 2).sum(), 0.0
    return Linear(float(alpha), float(beta))
