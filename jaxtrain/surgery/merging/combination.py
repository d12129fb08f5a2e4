"""A linear combination of checkpoints. Liu et al. (2024), arXiv:2404.02241 (LCSC).

Coefficients add up to 1 and may be negative. A mean, an exponential moving average of saved weights and one checkpoint
alone are cases of it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from jaxtrain.surgery.lazy import Box, LazyLeaf
from jaxtrain.surgery.merging.base import Merge, Merged, Own, Parameters

PARENTS = 5
NOISE = (0.1, 0.5, 2.0)  # deviations of the noise, of which a child has one; in units of a uniform mean's coefficient


@dataclass(frozen=True, kw_only=True, slots=True)
class Combination(Merge):
    """The sum of all parents' parameters times `coefficients`, in float32. Integers are those of the last parent."""

    coefficients: tuple[float, ...]
    paper: ClassVar[str] = "arXiv:2404.02241"

    def __post_init__(self):
        if not math.isclose(sum(self.coefficients), 1, abs_tol=1e-6):
            raise ValueError(f"coefficients={self.coefficients}: must add up to 1")

    def check(self, names: list[str], parents: int) -> None:
        if len(self.coefficients) != parents:
            raise ValueError(f"coefficients={self.coefficients}: there are {parents} parents; give one for each")

    def leaf(self, name: str, parents: Sequence[Parameters], own: Own) -> LazyLeaf:
        last = parents[-1][name]
        used = [(parent[name], c) for parent, c in zip(parents, self.coefficients, strict=True) if c]
        if not jnp.issubdtype(last.dtype, jnp.floating):
            return last
        if len(used) == 1:
            return used[0][0]

        def combined(box: Box) -> np.ndarray:
            total = np.zeros((), np.float32)
            for parent, coefficient in used:
                total = total + np.float32(coefficient) * parent.read(box).astype(np.float32, copy=False)
            return total

        return Merged(last.shape, last.dtype, combined)


def moving_average(decay: float, checkpoints: int) -> tuple[float, ...]:
    """Return the coefficients of a <- decay a + (1 - decay) w over checkpoints, oldest first, from the first on."""
    newer = np.arange(checkpoints)[::-1]
    coefficients = (1 - decay) * np.float64(decay) ** newer
    coefficients[0] = np.float64(decay) ** (checkpoints - 1)
    return tuple(map(float, coefficients))


def evolved(
    loss: Callable[[tuple[float, ...]], float], seeds: Sequence[tuple[float, ...]], *, evaluations: int, seed: int = 0
) -> tuple[float, ...]:
    """Return the coefficients with the lowest loss that an evolutionary search finds. Liu et al. (2024), algorithm 1.

    `loss` takes coefficients and returns a number; it is called `evaluations` times. The search begins with `seeds`, so
    what it returns is at least as good. A child has each coefficient of one of two parents among the best, and noise;
    what then lacks to a sum of 1 is added to the last checkpoint's.
    """
    if len(seeds[0]) < 2:
        raise ValueError("a search combines two checkpoints or more")

    def measured(own: tuple[float, ...]) -> float:
        found = loss(own)
        return math.inf if math.isnan(found) else found

    random = np.random.default_rng(seed)
    known = {own: measured(own) for own in dict.fromkeys(seeds)}
    while len(known) < evaluations:
        best = sorted(known, key=lambda own: known[own])[:PARENTS]
        first, second = (np.array(best[i]) for i in random.integers(len(best), size=2))
        child = np.where(random.random(first.size) < 0.5, first, second)
        child = child + random.normal(size=child.size) * random.choice(NOISE) / child.size
        child[-1] += 1 - child.sum()
        own = tuple(map(float, child))
        known[own] = measured(own)
    return min(known, key=lambda own: known[own])
