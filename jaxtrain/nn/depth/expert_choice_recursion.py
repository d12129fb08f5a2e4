"""Mixture of Recursions with expert choice: Bae et al. (2025), arXiv:2507.10524, section 2.2.

A block is passed several times, and each pass takes the best tokens of those that the pass before took. Each pass has a
router. By an auxiliary loss the sign of its logit comes to say which tokens are taken, and evaluation and generation go
by that sign, which no later token changes. Here a router's weight multiplies what the block adds to the stream: with a
weight of 1 a pass is the block as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxtrain.axes import Axes, Kind
from jaxtrain.nn.depth.base import Depth, Layers, added_at, best_places, taken, tokens_of, weighed
from jaxtrain.nn.depth.membership import membership, mispredicted, with_own
from jaxtrain.nn.depth.passes import Passes, all_computed, initial_passes
from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.joins.base import Join
from jaxtrain.nn.layer import Out, Sums, TokenContext, added
from jaxtrain.nn.mixers.base import Keep, MixerConfig
from jaxtrain.nn.moe.routing import in_float32
from jaxtrain.nn.param import normal
from jaxtrain.ranges import check_positive
from jaxtrain.sharding import constrain


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertChoiceRecursion(Depth):
    """The block is passed once for each of the `capacities`, which are the shares of a row that a pass takes.

    With `shared_keys` all passes attend to the keys and values of the first, which takes all tokens then. `coefficient`
    multiplies the auxiliary loss.
    """

    capacities: tuple[float, ...]
    shared_keys: bool = False
    coefficient: float = 0.001
    paper: ClassVar[str] = "arXiv:2507.10524"
    neutral: ClassVar[tuple[str, ...]] = ("coefficient",)

    def __post_init__(self):
        falling = sorted(self.capacities, reverse=True)
        if not self.capacities or list(self.capacities) != falling or not 0 < falling[-1] <= falling[0] <= 1:
            raise ValueError(
                f"capacities={self.capacities}: give a share for each pass, above 0, at most 1, and none greater than "
                "the one before it"
            )
        if self.shared_keys and self.capacities[0] != 1:
            raise ValueError(
                f"capacities={self.capacities}: with shared_keys the first pass makes the keys of all tokens; "
                "begin with 1.0"
            )
        check_positive(self, "coefficient")

    def check(self, mixer: MixerConfig, mlp: FeedForwardConfig, join: Join) -> None:
        Depth.check(self, mixer, mlp, join)
        self.check_choice(mlp)

    @property
    def passes(self) -> float:
        return sum(self.capacities)

    def build(self, d_model: int, *, rngs: nnx.Rngs) -> dict[str, nnx.Variable]:
        drawn = normal(rngs.params(), (d_model, len(self.capacities)), ("embed", None), fan_in=d_model)
        read = (1.0, *self.capacities[:-1])  # a pass scores the tokens of the one before it
        axes = Axes(("embed", None), Kind.MATRIX, cast=False, used=sum(read) / len(read))
        return {"router": nnx.Param(drawn[...], axes=axes)}

    def tokens(self, length: int) -> list[int]:
        """Return how many tokens of a row each pass takes in training."""
        return [tokens_of(length, capacity) for capacity in self.capacities]

    def mixing_flops(self, mixer: MixerConfig, length: int) -> float:
        keys = [length if self.shared_keys else tokens for tokens in self.tokens(length)]
        return sum(
            tokens / length * mixer.mixing_flops(seen) for tokens, seen in zip(self.tokens(length), keys, strict=True)
        )

    def initial_state(self, layers: Any, batch: int, length: int) -> Passes:
        return initial_passes(layers, batch, length, times=len(self.capacities), shared_keys=self.shared_keys)

    def __call__(
        self, layers: Layers, x: Float[Array, "B L D"], context: TokenContext, state: Any, own: Mapping[str, Any]
    ) -> Out:
        if context.keys is not None:
            return self._trained(layers, x, context, own)

        def by_sign(number: int, x: Float[Array, "B L D"], before: Bool[Array, "B L"]):
            logits_BL = _logits(x, own, number)
            return before & (logits_BL > 0), jax.nn.sigmoid(logits_BL)

        times = len(self.capacities)
        return all_computed(layers, x, context, state, by_sign, times=times, shared_keys=self.shared_keys)

    def _trained(self, layers: Layers, x: Float[Array, "B L D"], context: TokenContext, own: Mapping[str, Any]) -> Out:
        x = constrain(x, "batch", None, None)  # tokens are taken from anywhere in a row
        places_BK = jnp.broadcast_to(jnp.arange(x.shape[1])[None], x.shape[:2])
        keys = Keep.KEYS if self.shared_keys else None
        sums: list[Sums] = []
        learned: list[Sums] = []
        before = context
        for number, tokens in enumerate(self.tokens(x.shape[1])):
            before_BKD = taken(x, places_BK)
            logits_BK = _logits(before_BKD, own, number)
            best_BK = best_places(jnp.where(before.real > 0, logits_BK, -jnp.inf), tokens)
            learned.append(membership(logits_BK, best_BK, before, self.coefficient))
            places_BK, few_BKD = taken(places_BK, best_BK), taken(before_BKD, best_BK)
            before = weighed(context, context.at(places_BK))
            own_context = before.in_layer(number)
            if self.shared_keys:
                own_context = own_context._replace(key_segment_ids=context.key_segment_ids)
            out = layers(constrain(few_BKD, "batch", "residual_length", None), own_context, keys)
            keys = out.state
            weight_BK = jax.nn.sigmoid(taken(logits_BK, best_BK)).astype(x.dtype)
            added_BKD = (out.y - few_BKD) * weight_BK[..., None]
            x = added_at(x, places_BK, constrain(added_BKD, "batch", None, None))
            sums.append(out.sums)
        return Out(constrain(x, "batch", "residual_length", None), sums=with_own(added(*sums), added(*learned)))

    def report(self, counts: Mapping[str, Any]) -> dict[str, Float[Array, ""]]:
        return mispredicted(counts)


def _logits(x: Float[Array, "B L D"], own: Mapping[str, Any], number: int) -> Float[Array, "B L"]:
    return in_float32(x, own["router"][...][:, number])
