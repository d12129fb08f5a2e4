"""What every layer gets beside its activations (TokenContext), and what it returns (Out)."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key


class Keys(NamedTuple):
    """The random keys of a step.

    `rows` has a key for each row of the global batch, so that the noise of a row depends neither on the mesh nor on its
    microbatch. `step` is for what all rows share.
    """

    rows: Key[Array, " B"]
    step: Key[Array, ""]


class TokenContext(NamedTuple):
    """What every layer may read about its tokens. Keys and queries differ only when decoding with a cache.

    `cache_index` comes with a decoding state: the slot in the cache of the first new token. `keys` are the layer's
    random keys in every training step, and None in evaluation and decoding, which have no noise. `taps` names the
    values that the caller asked for (a dict, so that its names are static). `tokens` are the ids, and `tasks` those of
    the batch: None where the caller has none, as in decoding. `row_weight` is what a token of each row stands for in
    the losses of layers, where a part of the row is there; None is 1.
    """

    positions: Int[Array, "B L"]
    segment_ids: Int[Array, "B L"]
    key_positions: Int[Array, "B S"]
    key_segment_ids: Int[Array, "B S"]
    cache_index: Int[Array, ""] | None = None
    keys: Keys | None = None
    taps: Mapping[str, None] = {}
    tokens: Int[Array, "B L"] | None = None
    tasks: Int[Array, "B L"] | None = None
    row_weight: Float[Array, " B"] | None = None

    def in_layer(self, layer: Int[Array, ""] | int) -> "TokenContext":
        """Return the context with the random keys of one layer of several."""
        return self._replace(keys=fold_in(self.keys, layer))

    def at(self, places: Int[Array, "B K"]) -> "TokenContext":
        """Return the context of the tokens at some places of each row, which are the only keys there.

        `key_positions` stay those of the whole row: by its length positions may be scaled.
        """

        def there(of_row: Int[Array, "B L"]) -> Int[Array, "B K"]:
            return jnp.take_along_axis(of_row, places, axis=1)

        segment_ids = there(self.segment_ids)
        return self._replace(
            positions=there(self.positions),
            segment_ids=segment_ids,
            key_segment_ids=segment_ids,
            tokens=None if self.tokens is None else there(self.tokens),
            tasks=None if self.tasks is None else there(self.tasks),
        )

    @property
    def real(self) -> Float[Array, "B L"]:
        """Return 1 for tokens and 0 for padding."""
        return (self.segment_ids != 0).astype(jnp.float32)

    @property
    def loss_weights(self) -> Float[Array, "B L"]:
        """Return what each token weighs in the losses of layers: 0 in padding, and 1 or `row_weight` elsewhere."""
        return self.real if self.row_weight is None else self.real * self.row_weight[:, None]


@overload
def fold_in(keys: Keys, data: Int[Array, ""] | int) -> Keys: ...


@overload
def fold_in(keys: None, data: Int[Array, ""] | int) -> None: ...


def fold_in(keys: Keys | None, data: Int[Array, ""] | int) -> Keys | None:
    """Fold one number into every key."""
    if keys is None:
        return None
    return Keys(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys.rows, data), jax.random.fold_in(keys.step, data))


class Sums(NamedTuple):
    """Sums of layers over their tokens, in float32. They are added over microbatches, devices and stages as well.

    `terms` are added to the loss, each divided by the number of real tokens of the global batch. `counts` are nested by
    the path of their layer. Buffers are computed from them once a step, and no gradient flows through them.
    """

    terms: Mapping[str, Float[Array, "..."]] = {}
    counts: Mapping[str, Any] = {}


class Out(NamedTuple):
    """What a layer returns.

    `y` is what the layer adds to the residual stream, or the stream itself. `state` is the new decoding state, and
    `taps` are the values that the caller asked for.
    """

    y: Float[Array, "B L D"]
    state: Any = None
    sums: Sums = Sums()
    taps: Mapping[str, Any] = {}


class Layer(nnx.Module):
    """A module that is called with activations and a `TokenContext` and returns an `Out`."""

    def update_buffers(self, counts: Mapping[str, Any]) -> None:
        """Replace the layer's buffers by what the counts of a whole step give. Called after the optimizer's update."""

    def report(self, counts: Mapping[str, Any]) -> dict[str, Float[Array, ""]]:
        """Return what a step shows of the counts, by name. Of several layers it shows the greatest."""
        return {}


def joined(**parts: Sums) -> Sums:
    """Return the sums of different layers: terms of one name are added, counts are nested under the layer's name."""
    terms = _added_terms(part.terms for part in parts.values())
    counts = {layer: jax.tree.map(_count, part.counts) for layer, part in parts.items() if part.counts}
    return Sums(terms, counts)


def added(*runs: Sums) -> Sums:
    """Return the total sums of one model that ran any number of times."""
    if not runs:
        return Sums()
    counts = functools.reduce(functools.partial(jax.tree.map, jnp.add), (run.counts for run in runs))
    return Sums(_added_terms(run.terms for run in runs), counts)


def greatest(reports: Iterable[Mapping[str, Array]]) -> dict[str, Array]:
    """Return the greatest number of each name."""
    found: dict[str, Array] = {}
    for report in reports:
        found |= {name: jnp.maximum(found[name], x) if name in found else x for name, x in report.items()}
    return found


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

    `site` tells the dropouts of one layer apart: each has its own random numbers.
    """
    if keys is None or rate == 0.0:
        return x
    keep_B = fold_in(keys, site).rows
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keep_B)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))
