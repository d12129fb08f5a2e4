"""A bound on the loss of the last iterate for any schedule. Schaipp et al. (2025), arXiv:2501.18965, theorem 1.

For a convex loss, gradients of norm at most G_t, and a start at distance D from a minimiser, the loss of the last
iterate of SGD with the rates g r_t exceeds the least one by at most g^-1 T1 + g T2, where

    T1 = D^2 / (2 sum r),  T2 = sum r^2 G^2 / (2 sum r) + 1/2 sum_k r_k sum_(t>=k) r^2 G^2 / (sum_(t>k) r sum_(t>=k) r).

So the best g is sqrt(T1 / T2). Schedules stand in the order of their losses for language models, the paper finds.
"""

import math
from typing import NamedTuple

import numpy as np


class Bound(NamedTuple):
    """The two terms of the bound of a schedule."""

    t1: float
    t2: float

    @property
    def best_rate(self) -> float:
        """The multiple of the schedule with the least bound."""
        return math.sqrt(self.t1 / self.t2)

    @property
    def least(self) -> float:
        """The bound at `best_rate`."""
        return 2 * math.sqrt(self.t1 * self.t2)

    def at(self, multiple: float) -> float:
        """Return the bound of a multiple of the schedule."""
        return self.t1 / multiple + multiple * self.t2


def last_iterate_bound(rates: np.ndarray, norms: np.ndarray | float = 1.0, *, distance: float = 1.0) -> Bound:
    """Return the bound of the rates of all steps. Steps at the end whose rate is 0 move nothing, and are left out.

    Raises:
        ValueError: a rate is negative, or none is above 0.
    """
    rates = np.asarray(rates, np.float64)
    if not (rates >= 0).all() or not rates.any():
        raise ValueError("rates: one is negative or no number, or none is above 0; give the rate of every step")
    r = np.trim_zeros(rates, "b")
    weighted = np.square(r * np.broadcast_to(np.asarray(norms, np.float64), rates.shape)[: len(r)])
    tail, weighted_tail = (np.cumsum(x[::-1])[::-1] for x in (r, weighted))
    later = np.sum(r[:-1] * weighted_tail[:-1] / (tail[1:] * tail[:-1]))
    return Bound(distance**2 / (2 * tail[0]), weighted_tail[0] / (2 * tail[0]) + later / 2)


def cooldown_rates(steps: int, decay_steps: int) -> np.ndarray:
    """Return the rates of a constant schedule of 1 that falls in a straight line over the last `decay_steps`."""
    left = steps - np.arange(steps)
    return np.minimum(1.0, left / max(decay_steps, 1))


def sized_cooldown(steps: int, *, excess: float) -> int:
    """Return the fewest steps of cool-down with a least bound at most a share above that of a cool-down over all."""
    most = (1 + excess) * last_iterate_bound(cooldown_rates(steps, steps)).least
    below, enough = 0, steps
    while enough - below > 1:  # the least bound falls as the cool-down grows
        middle = (below + enough) // 2
        if last_iterate_bound(cooldown_rates(steps, middle)).least <= most:
            enough = middle
        else:
            below = middle
    return enough
