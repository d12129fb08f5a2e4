"""Tokens sorted by expert, and products over groups of rows: Gale et al. (2022), arXiv:2211.15841.

No token is dropped, and no row is computed that no token asked for. Where experts are split over devices, each device
gathers the tokens of its group, computes what its own experts make of them, and scatters the sums back.
"""

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from jaxtrain.nn.moe.dispatch.base import Dispatch
from jaxtrain.nn.moe.dispatch.region import Load, Split, in_region_of_tokens
from jaxtrain.nn.moe.dispatch.rows import computed
from jaxtrain.nn.moe.experts import Experts
from jaxtrain.nn.moe.routing import Routing
from jaxtrain.ranges import check_at_least_one
from jaxtrain.shapes import ModelState


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropless(Dispatch):
    """Rows are sorted by expert, and one grouped product computes all experts of a device.

    The tokens of a device go through in `pieces`, as many as divide them. One at a time is in memory, in the backward
    pass too.
    """

    pieces: int = 1
    paper: ClassVar[str] = "arXiv:2211.15841"

    def __post_init__(self):
        check_at_least_one(self, "pieces")

    def __call__(self, x: Float[Array, "B L D"], routing: Routing, experts: Experts) -> Float[Array, "B L D"]:
        def of_device(arrays: ModelState, split: Split, *tokens):
            pieces = math.gcd(self.pieces, len(tokens[0]))
            of_piece = functools.partial(sum_over_devices, experts, arrays, split)
            if pieces == 1:
                return of_piece(*tokens)
            parts = [part.reshape(pieces, len(part) // pieces, -1) for part in tokens]
            return jax.lax.map(lambda part: jax.checkpoint(of_piece, prevent_cse=False)(*part), parts)

        return in_region_of_tokens(of_device, x, routing, experts)

    def sent(self, load: Load) -> int:
        values = load.tokens * load.width
        return 2 * values * (load.apart - 1) + 2 * values * (load.alike - 1) // load.alike


def sum_over_devices(
    experts: Experts,
    arrays: ModelState,
    split: Split,
    x: Float[Array, "T D"],
    numbers: Int[Array, "T K"],
    weights: Float[Array, "T K"],
) -> Float[Array, "T D"]:
    """Return the sums of a device's tokens over all devices that have experts."""
    gathered, summed, count = split.apart, split.alike, len(jax.tree.leaves(arrays)[0])
    first = jax.lax.axis_index(split.experts) * count if split.experts else 0
    tokens, numbers, weights = (_gather(part, gathered) for part in (x, numbers, weights))
    y_TD = _sum_of_own(experts, arrays, tokens, numbers - first, weights, count)
    y_TD = jax.lax.psum_scatter(y_TD, gathered, scatter_dimension=0, tiled=True) if gathered else y_TD
    return jax.lax.psum(y_TD, summed) if summed else y_TD


def _gather(rows: Shaped[Array, "T *S"], over: tuple[str, ...]) -> Shaped[Array, "U *S"]:
    return jax.lax.all_gather(rows, over, axis=0, tiled=True) if over else rows


def _sum_of_own(
    experts: Experts,
    arrays: ModelState,
    x: Float[Array, "T D"],
    numbers: Int[Array, "T K"],
    weights: Float[Array, "T K"],
    count: int,
) -> Float[Array, "T D"]:
    """Return the weighed sum of the experts 0 to `count` that each token asked for. Others have other numbers."""
    group_TK = jnp.where((numbers >= 0) & (numbers < count), numbers, count)
    y_ND = computed(experts, arrays, x, group_TK.reshape(-1), count)
    return jnp.einsum("TKD,TK->TD", y_ND.reshape(*numbers.shape, -1), weights)
