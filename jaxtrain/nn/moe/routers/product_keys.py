"""Product keys: Ryabinin and Gusev (2020), arXiv:2002.04013, section 3.2, after Lample et al. (2019), arXiv:1907.05242.

Experts live in the cells of a grid. The score of an expert is a sum with one term for each axis, so the router has
sum(grid) outputs in place of one for each expert.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxtrain.nn.layer import TokenContext
from jaxtrain.nn.moe.routers.base import Own, Router, linear_logits, matrix
from jaxtrain.nn.moe.routing import Scores
from jaxtrain.ranges import check_at_least_one


@dataclass(frozen=True, kw_only=True, slots=True)
class ProductKeys(Router):
    """The softmax over experts of a sum: one logit for each coordinate of the expert's cell in the grid.

    Cells are numbered with the last axis first. Those in `holes` have no expert; expert e lives in cell number e of the
    others. With `beam`, experts are chosen among those that a beam search over the axes finds, else among all. A beam
    of `top_k` finds the best ones of a grid without holes.
    """

    grid: tuple[int, ...]
    holes: tuple[int, ...] = ()
    beam: int | None = None
    paper: ClassVar[str] = "arXiv:2002.04013"

    def __post_init__(self):
        if not self.grid or min(self.grid) < 1:
            raise ValueError(f"grid={self.grid}: give the sizes of its axes, each at least 1")
        cells = math.prod(self.grid)
        if len(set(self.holes)) < len(self.holes) or any(not 0 <= hole < cells for hole in self.holes):
            raise ValueError(f"holes={self.holes}: numbers of different cells, from 0 to {cells - 1}")
        if self.beam is not None:
            check_at_least_one(self, "beam")

    def check(self, experts: int, top_k: int) -> None:
        if experts != (living := math.prod(self.grid) - len(self.holes)):
            raise ValueError(
                f"grid={self.grid} has room for {living} experts, and there are {experts}: give it as many"
            )
        if self.beam is not None and self.beam < top_k:
            raise ValueError(f"beam={self.beam}: it finds fewer experts than top_k={top_k}; set beam={top_k} or more")

    def build(self, d_model: int, experts: int, *, rngs: nnx.Rngs) -> dict[str, nnx.Variable]:
        return {"router": matrix(d_model, sum(self.grid), rngs)}

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext, own: Own) -> Scores:
        keys_BLK, alive = linear_logits(x, own), self._alive()
        (cells,) = np.nonzero(alive)
        first = np.cumsum((0, *self.grid[:-1]))
        of_expert_EA = np.stack(np.unravel_index(cells, self.grid), axis=-1) + first
        logits_BLE = jnp.sum(keys_BLK[..., of_expert_EA], axis=-1)
        scores = Scores(logits_BLE, jax.nn.softmax(logits_BLE, axis=-1))
        if self.beam is None:
            return scores
        axes = jnp.split(jax.lax.stop_gradient(keys_BLK), first[1:], axis=-1)
        found_BLN, there_BLN = beam_search(axes, alive, self.beam)
        number = jnp.asarray(np.cumsum(alive) - 1)  # of the expert in a cell
        found_BLNE = jax.nn.one_hot(number[found_BLN], len(cells)) * there_BLN[..., None]
        found_BLE = jnp.sum(found_BLNE, axis=-2) > 0
        return scores._replace(chosen_by=jnp.where(found_BLE, scores.weights, -jnp.inf))

    def _alive(self) -> np.ndarray:
        alive = np.ones(math.prod(self.grid), bool)
        alive[list(self.holes)] = False
        return alive


def beam_search(
    keys: list[Float[Array, "..."]], alive: np.ndarray, beam: int
) -> tuple[Int[Array, "*B N"], Bool[Array, "*B N"]]:
    """Return the cells with the greatest sums of keys that a beam search finds, and where there is one of that rank.

    `keys` are those of each axis, `[..., axis]`, and `alive` says which cells have an expert. A step takes the best
    `beam` prefixes of those that lead to a living expert.
    """
    grid = [axis.shape[-1] for axis in keys]
    sums, prefixes = jnp.zeros((*keys[0].shape[:-1], 1)), jnp.zeros((*keys[0].shape[:-1], 1), jnp.int32)
    for axis, size in enumerate(grid):
        leads = jnp.asarray(alive.reshape(math.prod(grid[: axis + 1]), -1).any(axis=-1))
        next_ = jax.lax.broadcasted_iota(jnp.int32, (*prefixes.shape, size), prefixes.ndim)
        longer = (prefixes[..., None] * size + next_).reshape(*prefixes.shape[:-1], -1)
        summed = (sums[..., None] + keys[axis][..., None, :]).reshape(longer.shape)
        sums, best = jax.lax.top_k(jnp.where(leads[longer], summed, -jnp.inf), min(beam, longer.shape[-1]))
        prefixes = jnp.take_along_axis(longer, best, axis=-1)
    return prefixes, sums > -jnp.inf
