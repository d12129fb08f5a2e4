"""Several passes through a block in which all tokens are computed and those that do not pass are hidden."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxtrain.nn.depth.base import Layers, only, written
from jaxtrain.nn.layer import Out, Sums, TokenContext, added
from jaxtrain.nn.mixers.base import Keep

# The number of a pass, the stream before it and the tokens that passed before, to those that pass and their weights.
Choose = Callable[[int, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class Passes(NamedTuple):
    """The decoding state of a block that is passed several times: which tokens of the cache took part in each pass.

    `layers` has the state of each pass; only that of the first where all attend to its keys.
    """

    layers: tuple[Any, ...]
    passed: tuple[Bool[Array, "B S"], ...]


def initial_passes(layers: Any, batch: int, length: int, *, times: int, shared_keys: bool) -> Passes:
    """Return the state before the first token, from the one of the block's layers."""
    return Passes((layers,) * (1 if shared_keys else times), (jnp.zeros((batch, length), bool),) * times)


def all_computed(
    layers: Layers,
    x: Float[Array, "B L D"],
    context: TokenContext,
    state: Passes | None,
    choose: Choose,
    *,
    times: int,
    shared_keys: bool,
) -> Out:
    """Return the stream behind all passes. What a pass adds to a token is multiplied by the token's weight."""
    states: list[Any] = []
    passed: list[jax.Array] = []
    sums: list[Sums] = []
    passing_BL = context.segment_ids != 0
    for number in range(times):
        passing_BL, weight_BL = choose(number, x, passing_BL)
        passed.append(passing_BL if state is None else written(state.passed[number], passing_BL, context.cache_index))
        of_first = shared_keys and number > 0
        own = only(context.in_layer(number), passing_BL, passed[0 if shared_keys else -1])
        if of_first:
            out = layers(x, own._replace(cache_index=None), states[0])
        else:
            fresh = Keep.KEYS if shared_keys else None
            out = layers(x, own, fresh if state is None else state.layers[number])
            states.append(out.state)
        sums.append(out.sums)
        x = x + (out.y - x) * jnp.where(passing_BL, weight_BL, 0.0).astype(x.dtype)[..., None]
    return Out(x, None if state is None else Passes(tuple(states), tuple(passed)), added(*sums))
