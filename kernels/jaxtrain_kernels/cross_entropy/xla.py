"""The portable form: a scan over tiles of the vocabulary, backward by computing each tile's logits again.

The forward keeps a running maximum and sum of exponentials a token (Milakov and Gimelshein, 2018, arXiv:1805.02867).
The backward needs nothing but log-sum-exp: with p = exp(z - lse) and c = weight * (1 + 2 z_loss lse),

    dz = c p - weight [target]      (times 1 - (z / cap)^2 with a soft cap)      dx = dz W      dW = dz^T x

dz is rounded to the dtype of x before it is multiplied, as is dx after the sum over tiles in float32. Inside a
shard_map the head may be split by vocabulary over an axis: then the log-sum-exp is combined by one maximum and two
sums of a number a token, and dx by a sum over the axis.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxtrain_kernels.cross_entropy.reference import LossSums
from jaxtrain_kernels.varying import vary, varying

LOWEST = -1e30  # stands in for the logit of a word that is not there: its exponential is 0, and no infinities meet


def cross_entropy(
    x: Float[Array, "T D"],
    head: Float[Array, "W D"],
    targets: Int[Array, " T"],
    weights: Float[Array, " T"],
    *,
    z_loss: float,
    softcap: float | None,
    tile: int,
    axis_name: str | None,
) -> LossSums:
    """Return the sums; see api.cross_entropy."""
    # Made to vary alike over the other axes of a mesh, so that their gradients are summed over those by pcast's rule.
    arrays = (x, head, targets, weights)
    others = frozenset().union(*map(varying, arrays)) - {axis_name}
    x, head, targets, weights = vary(others, *arrays)
    return _sums(x, head, targets, weights, z_loss, softcap, min(tile, head.shape[0]), axis_name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def _sums(x, head, targets, weights, z_loss, softcap, tile, axis_name):
    return _forward(x, head, targets, weights, z_loss, softcap, tile, axis_name)[0]


def _forward(x, head, targets, weights, z_loss, softcap, tile, axis_name):
    """Return the sums, and what the backward needs."""
    tiles, starts, own = _tiles(head, tile), _starts(head, tile), _rows_of(targets, head, axis_name)

    def step(carry, inputs):
        greatest, total, at_target = carry
        part, start = inputs
        z = _logits(x, part, start, head.shape[0], softcap)
        new = jnp.maximum(greatest, jnp.max(z, axis=-1))
        total = total * jnp.exp(greatest - new) + jnp.sum(jnp.exp(z - new[:, None]), axis=-1)
        return (new, total, at_target + jnp.sum(jnp.where(_is_target(own, start, tile), z, 0.0), axis=-1)), None

    like = _like(x, head, own)
    empty = (jnp.full(x.shape[:1], LOWEST) + like, like, like)
    (greatest, total, at_target), _ = jax.lax.scan(step, empty, (tiles, starts))
    if axis_name is not None:
        here = greatest
        greatest = jax.lax.pmax(here, axis_name)
        total = jax.lax.psum(total * jnp.exp(here - greatest), axis_name)
        at_target = jax.lax.psum(at_target, axis_name)
    lse = greatest + jnp.log(total)
    nll = jnp.sum(weights * (lse - at_target))
    loss = nll + z_loss * jnp.sum(weights * jnp.square(lse))
    return LossSums(loss, nll), (x, head, targets, weights, lse, at_target)


def _backward(z_loss, softcap, tile, axis_name, residuals, cotangents):
    x, head, targets, weights, lse, at_target = residuals
    tiles, starts, own = _tiles(head, tile), _starts(head, tile), _rows_of(targets, head, axis_name)
    weight = weights * cotangents.loss
    share = weight * (1.0 + 2.0 * z_loss * lse)

    def step(dx, inputs):
        part, start = inputs
        z = _logits(x, part, start, head.shape[0], softcap)
        dz = share[:, None] * jnp.exp(z - lse[:, None]) - jnp.where(_is_target(own, start, tile), weight[:, None], 0.0)
        if softcap is not None:
            dz = dz * (1.0 - jnp.square(jnp.maximum(z, -softcap) / softcap))
        dz = dz.astype(x.dtype)
        dx = dx + jnp.einsum("TW,WD->TD", dz, part, preferred_element_type=jnp.float32)
        return dx, jnp.einsum("TW,TD->WD", dz, x, preferred_element_type=jnp.float32).astype(head.dtype)

    like = _like(x, head, own)
    dx, dtiles = jax.lax.scan(step, jnp.zeros(x.shape, jnp.float32) + like[:, None], (tiles, starts))
    dhead = dtiles.reshape(-1, head.shape[1])[: head.shape[0]]
    if axis_name is not None:
        dx = jax.lax.psum(dx, axis_name)
    dweights = cotangents.loss * (lse - at_target + z_loss * jnp.square(lse))
    return dx.astype(x.dtype), dhead, np.zeros(targets.shape, jax.dtypes.float0), dweights.astype(weights.dtype)


_sums.defvjp(_forward, _backward)


def _tiles(head: Float[Array, "W D"], tile: int) -> Float[Array, "N C D"]:
    missing = -head.shape[0] % tile
    whole = jnp.pad(head, ((0, missing), (0, 0))) if missing else head
    return whole.reshape(-1, tile, head.shape[1])


def _starts(head: Float[Array, "W D"], tile: int) -> Int[Array, " N"]:
    return jnp.arange(0, head.shape[0], tile, dtype=jnp.int32)


def _rows_of(targets: Int[Array, " T"], head: Float[Array, "W D"], axis_name: str | None) -> Int[Array, " T"]:
    """Return the targets as rows of this part of the head, -1 for those of other parts."""
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * head.shape[0]
    own = targets - first
    return jnp.where(own < head.shape[0], own, -1)  # or it would be found in the padding of the last tile


def _logits(x, part, start, words: int, softcap: float | None) -> Float[Array, "T C"]:
    z = jnp.einsum("TD,CD->TC", x, part, preferred_element_type=jnp.float32)
    if softcap is not None:
        z = softcap * jnp.tanh(z / softcap)
    there = start + jnp.arange(part.shape[0]) < words
    return jnp.where(there[None], z, LOWEST)


def _is_target(own: Int[Array, " T"], start: Int[Array, ""], tile: int) -> Array:
    return own[:, None] == start + jnp.arange(tile)[None]


def _like(x: Array, head: Array, own: Array) -> Float[Array, " T"]:
    """Return zeros, one a token, that vary over the mesh axes that the tokens or the head do: what a scan carries."""
    return (jnp.sum(x[:, :0], axis=1) + jnp.sum(head[:0]) + 0 * own).astype(jnp.float32)
