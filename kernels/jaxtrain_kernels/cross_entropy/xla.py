"""The XLA implementation: a scan over tiles of the vocabulary, whose backward recomputes each tile's logits.

The forward combines the log-sum-exp of one tile after another and finds the logit of the target. The backward needs
only the final log-sum-exp: with p = exp(z - log_z),

    dz = (dnll + dlog_z) p - dnll [target]

The vjp of a tile's logits takes dz to the gradients of x and of the tile of head and bias. The gradient of x is summed
over tiles in float32. A vocabulary of one tile has no scan: its logits are kept, and automatic differentiation is used.

The compiler may have split the rows of the head over devices, in `shards` equal parts. Then a tile takes consecutive
rows of every part, so that all devices work on every tile.

Inside a shard_map the head may be this device's part of a vocabulary that is split over `axis_name`. Then one maximum
and two sums of a number a token combine the log-sum-exp, and a sum over the axis combines the gradient of x.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jaxtrain_kernels.cross_entropy import logits
from jaxtrain_kernels.cross_entropy.logits import Project, logits_of
from jaxtrain_kernels.cross_entropy.reference import CrossEntropy
from jaxtrain_kernels.varying import vary, varying

LOWEST = -1e30  # the logit of a padding row: its exponential is 0, and unlike -inf it gives no NaN
NO_WORD = np.iinfo(np.int32).min  # the index of a padding row, which no target has


def cross_entropy(
    x: Float[Array, "*tokens D"],
    head: Shaped[Array, "W D"],
    targets: Int[Array, "*tokens"],
    *,
    bias: Float[Array, " W"] | None,
    softcap: float | None,
    words: int | None,
    tile: int,
    shards: int,
    axis_name: str | None,
    project: Project | None,
) -> CrossEntropy:
    """Return the cross-entropy; see api.cross_entropy."""

    def of_rows(x, head, bias):
        return logits_of(x, head, project or logits.project, softcap, bias)

    cut = Cut(shards, head.shape[0] // shards, tile_count(head.shape[0] // shards, tile), words)
    # All vary over the same other axes of the mesh, so that the transpose of pcast sums their gradients over these.
    others = frozenset().union(*map(varying, (x, head, bias, targets))) - {axis_name}
    x, head, targets = vary(others, x, head, targets)
    (bias,) = vary(others, bias)
    if cut.tiles == 1 and axis_name is None:
        words_of_tile = cut.words(jnp.int32(0), x.ndim)
        log_z, at_target = _log_z_and_target(cut.masked(of_rows(x, head, bias), words_of_tile), targets, words_of_tile)
        return CrossEntropy(log_z - at_target, log_z)
    if axis_name is not None:
        targets = targets - jax.lax.axis_index(axis_name) * head.shape[0]
    biases = None if bias is None else cut.split(bias[:, None])[..., 0]
    return _tiled(x, cut.split(head), biases, targets, of_rows, cut, axis_name)


class Cut(NamedTuple):
    """`shards` parts of a vocabulary, of `own` rows each, cut into `tiles` with equally many rows of every part.

    With `real` only the first rows of all are words.
    """

    shards: int
    own: int
    tiles: int
    real: int | None = None

    @property
    def rows(self) -> int:
        return -(-self.own // self.tiles)

    @property
    def missing(self) -> int:
        return self.tiles * self.rows - self.own

    def split(self, head: Shaped[Array, "W D"]) -> Shaped[Array, "N C D"]:
        """Return the tiles; the last one is filled with padding rows."""
        parts = head.reshape(self.shards, self.own, -1)
        if self.missing:
            parts = jnp.concatenate([parts, parts[:, : self.missing]], axis=1)
        tiles = jnp.moveaxis(parts.reshape(self.shards, self.tiles, self.rows, -1), 1, 0)
        return tiles.reshape(self.tiles, self.shards * self.rows, -1)

    def words(self, tile: Int[Array, ""], rank: int) -> Int[Array, "*ones C"]:
        """Return the index in the vocabulary of every row of a tile, as an array of that rank."""
        row = (tile * self.rows + jnp.arange(self.rows))[None]
        words = jnp.arange(self.shards)[:, None] * self.own + row
        words = jnp.where(row < self.own, words, NO_WORD) if self.missing else words
        words = words if self.real is None else jnp.where(words < self.real, words, NO_WORD)
        return words.reshape(*(1,) * (rank - 1), -1)

    def masked(self, z: Float[Array, "*tokens C"], words: Int[Array, "*ones C"]) -> Float[Array, "*tokens C"]:
        """Return the logits of a tile, LOWEST for padding rows."""
        return jnp.where(words != NO_WORD, z, LOWEST) if self.missing or self.real is not None else z


def tile_count(rows: int, most: int) -> int:
    """Return how many tiles of at most `most` rows to take: the fewest, or fewer than twice as many of equal size."""
    fewest = math.ceil(rows / most)
    return next((count for count in range(fewest, 2 * fewest) if rows % count == 0), fewest)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _tiled(x, tiles, biases, targets, of_rows, cut, axis_name):
    return _forward(x, tiles, biases, targets, of_rows, cut, axis_name)[0]


def _forward(x, tiles, biases, targets, of_rows: Callable, cut: Cut, axis_name):
    """Return the cross-entropy and the residuals."""

    def step(carry, inputs):
        tile, bias, index = inputs
        words = cut.words(index, x.ndim)
        log_z, at_target = _log_z_and_target(cut.masked(of_rows(x, tile, bias), words), targets, words)
        return (jnp.logaddexp(carry[0], log_z), carry[1] + at_target), None

    zeros = _zeros(targets.shape, x, tiles, targets)
    (log_z, at_target), _ = jax.lax.scan(step, (zeros - jnp.inf, zeros), (tiles, biases, jnp.arange(cut.tiles)))
    if axis_name is not None:
        greatest = jax.lax.pmax(log_z, axis_name)
        log_z = greatest + jnp.log(jax.lax.psum(jnp.exp(log_z - greatest), axis_name))
        at_target = jax.lax.psum(at_target, axis_name)
    return CrossEntropy(log_z - at_target, log_z), (x, tiles, biases, targets, log_z)


def _backward(of_rows, cut, axis_name, residuals, cotangents):
    x, tiles, biases, targets, log_z = residuals
    (x,) = vary(varying(tiles), x)  # its gradient is summed over `axis_name` below
    dnll, dlog_z = (cotangent[..., None] for cotangent in cotangents)

    def step(dx, inputs):
        tile, bias, index = inputs
        words = cut.words(index, x.ndim)
        z, derivative = jax.vjp(of_rows, x, tile, bias)
        p = jnp.exp(cut.masked(z, words) - log_z[..., None])
        own, dtile, dbias = derivative((dnll + dlog_z) * p - jnp.where(targets[..., None] == words, dnll, 0.0))
        return dx + own.astype(jnp.float32), (dtile, dbias)

    dx, (dtiles, dbiases) = jax.lax.scan(
        step, _zeros(x.shape, x, tiles, targets), (tiles, biases, jnp.arange(cut.tiles))
    )
    if axis_name is not None:
        dx = jax.lax.psum(dx, axis_name)
    return dx.astype(x.dtype), dtiles, dbiases, np.zeros(targets.shape, jax.dtypes.float0)


_tiled.defvjp(_forward, _backward)


def _log_z_and_target(z: Float[Array, "*tokens C"], targets: Int[Array, "*tokens"], words: Int[Array, "*ones C"]):
    """Return the log-sum-exp of the logits, and the target's logit: 0 if the target is not among `words`."""
    # A sum over the vocabulary, not a gather from it: every device reads only its own part of a split vocabulary.
    return jax.nn.logsumexp(z, axis=-1), jnp.sum(jnp.where(targets[..., None] == words, z, 0.0), axis=-1)


def _zeros(shape: tuple[int, ...], *like: Array) -> Float[Array, "..."]:
    """Return zeros that vary over the mesh axes that any of the arrays varies over: what a scan carries."""
    return vary(frozenset().union(*map(varying, like)), jnp.zeros(shape, jnp.float32))[0]
