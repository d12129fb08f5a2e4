"""Tokens sorted by expert, and products over groups of rows: Gale et al. (2022), arXiv:2211.15841.

No token is dropped, and no row is computed that no token asked for. Where experts are split over devices, each device
gathers the tokens of its group, computes what its own experts make of them, and scatters the sums back.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from jaxtrain.nn.moe.dispatch.base import Dispatch
from jaxtrain.nn.moe.dispatch.region import Split, in_region
from jaxtrain.nn.moe.experts import Experts
from jaxtrain.nn.moe.routing import Routing
from jaxtrain.shapes import ModelState


@dataclass(frozen=True, kw_only=True, slots=True)
class Dropless(Dispatch):
    """Rows are sorted by expert, and one grouped product computes all experts of a device."""

    paper: ClassVar[str] = "arXiv:2211.15841"

    def __call__(self, x: Float[Array, "B L D"], routing: Routing, experts: Experts) -> Float[Array, "B L D"]:
        numbers_BLK, weights_BLK, there_BLK = routing.listed()
        numbers_BLK = jnp.where(there_BLK > 0, numbers_BLK, routing.chosen.shape[-1])  # none has this number

        def of_device(arrays: ModelState, split: Split, x_BLD, numbers_BLK, weights_BLK):
            gathered = tuple(axis for axis in split.experts if axis in split.rows)
            summed = tuple(axis for axis in split.experts if axis not in split.rows)
            tokens, numbers, weights = (
                _gather(part.reshape(-1, part.shape[-1]), gathered) for part in (x_BLD, numbers_BLK, weights_BLK)
            )
            count = len(jax.tree.leaves(arrays)[0])
            first = jax.lax.axis_index(split.experts) * count if split.experts else 0
            y_TD = _sum_of_own(experts, arrays, tokens, numbers - first, weights, count)
            y_TD = jax.lax.psum(y_TD, summed) if summed else y_TD
            y_TD = jax.lax.psum_scatter(y_TD, gathered, scatter_dimension=0, tiled=True) if gathered else y_TD
            return y_TD.reshape(x_BLD.shape)

        names = ("batch", "residual_length", None)
        return in_region(of_device, experts, *((part, names) for part in (x, numbers_BLK, weights_BLK.astype(x.dtype))))


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
    tokens, most = numbers.shape
    group_N = jnp.where((numbers >= 0) & (numbers < count), numbers, count).reshape(-1)
    order_N = jnp.argsort(group_N, stable=True)
    place_N = jnp.argsort(order_N)
    sizes_E = jnp.sum(group_N[:, None] == jnp.arange(count)[None], axis=0, dtype=jnp.int32)
    asked_ND = jnp.broadcast_to(x[:, None], (tokens, most, x.shape[-1])).reshape(-1, x.shape[-1])
    y_ND = experts.grouped(arrays, _permuted(asked_ND, order_N, place_N), sizes_E)
    y_TKD = _permuted(y_ND, place_N, order_N).reshape(tokens, most, -1)
    return jnp.einsum("TKD,TK->TD", y_TKD, weights)


@jax.custom_vjp
def _permuted(x: Float[Array, "N D"], order: Int[Array, " N"], inverse: Int[Array, " N"]) -> Float[Array, "N D"]:
    """Return `x[order]`, for a permutation and its inverse. The gradient is a look-up too, not a sum by index."""
    return x[order]


def _permuted_forward(x, order, inverse):
    return x[order], inverse


def _permuted_backward(inverse, dy):
    return dy[inverse], None, None


_permuted.defvjp(_permuted_forward, _permuted_backward)
