"""What every layer is told about the tokens it sees, and what it returns beside what it adds to the residual stream."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key


class Keys(NamedTuple):
    """The randomness of a step. `rows` has one key a row of the global batch, so that the noise of a row depends on
    neither the mesh nor the microbatch it came in; `step` is for what all rows share.
    """

    rows: Key[Array, " B"]
    step: Key[Array, ""]


class TokenContext(NamedTuple):
    """What every layer may know of its tokens. Keys and queries differ only when decoding with a cache.

    `keys` are those of the layer, and are there in every training step; None, in evaluation and decoding, asks for no
    noise. `taps` names the values that somebody asked for (a dict, so that its names are static).
    """

    positions: Int[Array, "B L"]
    segment_ids: Int[Array, "B L"]
    key_positions: Int[Array, "B S"]
    key_segment_ids: Int[Array, "B S"]
    cache_index: Int[Array, ""] | None = None
    keys: Keys | None = None
    taps: Mapping[str, None] = {}

    def in_layer(self, layer: Int[Array, ""] | int) -> "TokenContext":
        """Return the context with the keys of one layer of a stack."""
        return self._replace(keys=fold_in(self.keys, layer))

    @property
    def real(self) -> Float[Array, "B L"]:
        """Return 1 where there is a token and 0 at padding."""
        return (self.segment_ids != 0).astype(jnp.float32)


def fold_in(keys: Keys | None, data: Int[Array, ""] | int) -> Keys | None:
    """Fold one number into every key."""
    if keys is None:
        return None
    return Keys(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys.rows, data), jax.random.fold_in(keys.step, data))


class Sums(NamedTuple):
    """What layers add up over their tokens, in float32; microbatches, devices and stages add further.

    `terms` are added to the loss, each divided by the number of real tokens of the global batch. `counts` are what
    buffers are made of once a step, and no gradient flows through them; they lie under the place of their layer.
    """

    terms: Mapping[str, Float[Array, "..."]] = {}
    counts: Mapping[str, Any] = {}


class Out(NamedTuple):
    """What a layer returns: `y`, what it adds to the residual stream, or the stream itself; the new decoding state;
    its sums; and the values that were asked for.
    """

    y: Float[Array, "B L D"]
    state: Any = None
    sums: Sums = Sums()
    taps: Mapping[str, Any] = {}


class Layer(nnx.Module):
    """A module of the residual stream. Its call returns an `Out`."""

    def update_buffers(self, counts: Mapping[str, Any]) -> None:
        """Replace the layer's buffers, from the counts of a whole step. Called after the optimizer's update."""


def joined(**parts: Sums) -> Sums:
    """Return the sums of parts at different places: terms of one name add up, counts lie under the place's name."""
    terms = _added_terms(part.terms for part in parts.values())
    counts = {place: jax.tree.map(_count, part.counts) for place, part in parts.items() if part.counts}
    return Sums(terms, counts)


def added(*runs: Sums) -> Sums:
    """Return the sums of one model that ran more than once, or not at all."""
    if not runs:
        return Sums()
    counts = functools.reduce(functools.partial(jax.tree.map, jnp.add), (run.counts for run in runs))
    return Sums(_added_terms(run.terms for run in runs), counts)


def _added_terms(parts: Iterable[Mapping[str, Array]]) -> dict[str, Array]:
    terms: dict[str, Array] = {}
    for part in parts:
        for name, term in part.items():
            terms[name] = terms[name] + term if name in terms else jnp.asarray(term, jnp.float32)
    return terms


def _count(x: Array) -> Float[Array, "..."]:
    return jax.lax.stop_gradient(jnp.asarray(x, jnp.float32))


def dropout(x: Float[Array, "B *rest"], rate: float, keys: Keys | None, site: int) -> Float[Array, "B *rest"]:
    """Zero elements with probability `rate` and scale the rest by 1/(1-rate); identity without keys.

    `site` numbers the places within a layer that drop.
    """
    if keys is None or rate == 0.0:
        return x
    keep_B = fold_in(keys, site).rows
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keep_B)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))
