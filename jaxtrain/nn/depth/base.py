"""The base class of depths: how often each token passes through a block."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.joins.base import Join
from jaxtrain.nn.layer import Out, TokenContext
from jaxtrain.nn.mixers.base import MixerConfig
from jaxtrain.technique import Technique


@runtime_checkable
class Layers(Protocol):
    """One pass through the layers of a block, of whole rows or of a part of their tokens."""

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext, state: Any, /) -> Out: ...


class Depth(Technique):
    """A frozen dataclass that says how often each token passes through a block: never, once or several times.

    It is called in the place of the block. What it makes of a token depends on the token's own row alone. In evaluation
    and generation of a causal model, which have no keys, it depends on no later token.
    """

    __slots__ = ()

    @property
    @abstractmethod
    def passes(self) -> float:
        """How often a token passes in the mean, in training."""

    def check(self, mixer: MixerConfig, mlp: FeedForwardConfig, join: Join) -> None:
        """Raise ValueError for a block that some tokens cannot leave out."""
        mixer.check_gaps()
        if join.normalises_stream:
            raise ValueError(
                f"join={join!r}: tokens that leave out the block would not be normalised; take another, such as PreNorm"
            )

    def check_choice(self, mlp: FeedForwardConfig) -> None:
        """Raise ValueError for a layer in which the tokens that training chooses, and no others, would compete."""
        if mlp.competition:
            raise ValueError(
                f"mlp: {mlp.competition}: the tokens of a row compete, and with depth={self!r} other tokens of it pass "
                "in evaluation than in training; take dispatch=@Dropless() and selection=@TopK()"
            )

    @abstractmethod
    def build(self, d_model: int, *, rngs: nnx.Rngs) -> dict[str, nnx.Variable]:
        """Return the variables that the block has beside its layers, by their names in it."""

    @abstractmethod
    def mixing_flops(self, mixer: MixerConfig, length: int) -> float:
        """Return the FLOPs of the mixer for a token of a row, in the mean, forward and backward."""

    @abstractmethod
    def initial_state(self, layers: Any, batch: int, length: int) -> Any:
        """Return the decoding state of the block, from the one of its layers."""

    @abstractmethod
    def __call__(
        self, layers: Layers, x: Float[Array, "B L D"], context: TokenContext, state: Any, own: Mapping[str, Any]
    ) -> Out:
        """Return the stream behind the block. `own` is what `build` made; counts are those of the key `depth`."""

    def report(self, counts: Mapping[str, Any]) -> dict[str, Float[Array, ""]]:
        """Return what a step shows of its own counts, by name. Of several blocks it shows the greatest."""
        return {}


def taken(x: Shaped[Array, "B L *rest"], places: Int[Array, "B K"]) -> Shaped[Array, "B K *rest"]:
    """Return the tokens of each row that lie at some places."""
    return jax.vmap(lambda row, at: row[at])(x, places)


def added_at(
    x: Shaped[Array, "B L *rest"], places: Int[Array, "B K"], y: Shaped[Array, "B K *rest"]
) -> Shaped[Array, "B L *rest"]:
    """Return `x` with `y` added to the tokens at some places, which are all different."""
    return jax.vmap(lambda row, at, new: row.at[at].add(new, unique_indices=True))(x, places, y)


def tokens_of(length: int, share: float) -> int:
    """Return the number of tokens that are a share of a row, rounded up: 7 for 0.07 of 100, which floats put above."""
    return math.ceil(round(length * share, 6))


def weighed(context: TokenContext, part: TokenContext) -> TokenContext:
    """Return the context of a part of each row's tokens, with weights with which they stand for the whole row.

    So a loss of the block's layers is a mean over the tokens that pass, as it is one over all in other blocks.
    """
    all_B, few_B = (jnp.sum(tokens.real, axis=1) for tokens in (context, part))
    return part._replace(row_weight=all_B / jnp.maximum(few_B, 1.0))


def best_places(scores: Float[Array, "B L"], count: int) -> Int[Array, "B K"]:
    """Return the places of the greatest scores of each row, in the order of the row."""
    return jnp.sort(jax.lax.top_k(jax.lax.stop_gradient(scores), count)[1], axis=-1)


def only(
    context: TokenContext, passing: Shaped[Array, "B L"], cached: Shaped[Array, "B S"] | None = None
) -> TokenContext:
    """Return the context in which the other tokens are padding, which none of these sees.

    `cached` says which tokens of a cache passed; without a cache they are `passing`.
    """
    return context._replace(
        segment_ids=jnp.where(passing, context.segment_ids, 0),
        key_segment_ids=jnp.where(passing if cached is None else cached, context.key_segment_ids, 0),
    )


def written(passed: Bool[Array, "B S"], new: Bool[Array, "B L"], index: Int[Array, ""] | None) -> Bool[Array, "B S"]:
    """Return which tokens of a cache passed, with the new ones that begin at an index."""
    assert index is not None, "a decoding state comes with a cache_index"
    return jax.lax.dynamic_update_slice(passed, new, (0, index))
