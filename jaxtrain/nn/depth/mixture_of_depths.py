"""Mixture of Depths: Raposo et al. (2024), arXiv:2404.02258.

A router scores the tokens of a row, and the best of them pass through the block, equation 1. Which are the best depends
on later tokens. So a second, small network learns to say of a token by itself whether it will be among them, section
3.5. Evaluation and generation of a causal model go by that. Any number of tokens may pass then, so rows are computed
whole, with the other tokens hidden.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxtrain.axes import Axes, Kind
from jaxtrain.nn.depth.base import (
    Depth,
    Layers,
    added_at,
    best_places,
    only,
    taken,
    tokens_of,
    weighed,
    written,
)
from jaxtrain.nn.depth.membership import membership, mispredicted, with_own
from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.joins.base import Join
from jaxtrain.nn.layer import Out, TokenContext
from jaxtrain.nn.mixers.base import MixerConfig
from jaxtrain.nn.moe.routing import in_float32
from jaxtrain.nn.param import normal, vector
from jaxtrain.ranges import check_at_least_one, check_positive
from jaxtrain.sharding import constrain


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureOfDepths(Depth):
    """The best tokens of a row pass, a share `capacity`. What the block adds to one is multiplied by its score.

    `predictor` is the hidden width of the network that tells which tokens pass, without later ones. A model that sees
    tokens ahead needs none. `coefficient` multiplies its loss, whose gradient reaches nothing else.
    """

    capacity: float = 0.125
    predictor: int | None = 64
    coefficient: float = 0.01
    paper: ClassVar[str] = "arXiv:2404.02258"
    neutral: ClassVar[tuple[str, ...]] = ("coefficient",)

    def __post_init__(self):
        if not 0.0 < self.capacity <= 1.0:
            raise ValueError(f"capacity={self.capacity}: must be a share of the tokens, above 0 and at most 1")
        check_positive(self, "coefficient")
        if self.predictor is not None:
            check_at_least_one(self, "predictor")

    @property
    def passes(self) -> float:
        return self.capacity

    def check(self, mixer: MixerConfig, mlp: FeedForwardConfig, join: Join) -> None:
        Depth.check(self, mixer, mlp, join)
        if self.predictor is not None:
            self.check_choice(mlp)
        if mixer.causal and self.predictor is None:
            raise ValueError(
                "predictor=None: the best tokens of a row are known at its end alone, so a causal model could neither "
                "generate nor be evaluated; give the width of a predictor"
            )

    def build(self, d_model: int, *, rngs: nnx.Rngs) -> dict[str, nnx.Variable]:
        built: dict[str, nnx.Variable] = {"router": _matrix(rngs, (d_model, 1), ("embed", None))}
        if self.predictor is not None:
            built["predictor_up"] = _matrix(rngs, (d_model, self.predictor), ("embed", None))
            built["predictor_down"] = _matrix(rngs, (self.predictor, 1), (None, None))
            built["predictor_bias"] = vector(jnp.zeros(1), (None,))
        return built

    def tokens(self, length: int) -> int:
        """Return how many tokens of a row pass in training."""
        return tokens_of(length, self.capacity)

    def mixing_flops(self, mixer: MixerConfig, length: int) -> float:
        tokens = self.tokens(length)
        return tokens / length * mixer.mixing_flops(tokens)

    def initial_state(self, layers: Any, batch: int, length: int) -> "Passed":
        return Passed(layers, jnp.zeros((batch, length), bool))

    def __call__(
        self, layers: Layers, x: Float[Array, "B L D"], context: TokenContext, state: Any, own: Mapping[str, Any]
    ) -> Out:
        x = constrain(x, "batch", None, None)  # tokens are taken from anywhere in a row
        score_BL = in_float32(x, own["router"][...])[..., 0]
        if context.keys is None and self.predictor is not None:
            return self._predicted(layers, x, context, state, score_BL, own)
        of_real_BL = jnp.where(context.real > 0, score_BL, -jnp.inf)
        places_BK = best_places(of_real_BL, self.tokens(x.shape[1]))
        few_BKD = constrain(taken(x, places_BK), "batch", "residual_length", None)
        out = layers(few_BKD, weighed(context, context.at(places_BK)), None)
        added_BKD = (out.y - few_BKD) * taken(score_BL, places_BK)[..., None].astype(x.dtype)
        y = added_at(x, places_BK, constrain(added_BKD, "batch", None, None))
        sums = out.sums
        if self.predictor is not None:
            logit_BL = _prediction(jax.lax.stop_gradient(x), own)
            sums = with_own(sums, membership(logit_BL, places_BK, context, self.coefficient))
        return Out(constrain(y, "batch", "residual_length", None), sums=sums)

    def _predicted(self, layers: Layers, x, context: TokenContext, state: Any, score: Float[Array, "B L"], own) -> Out:
        passing_BL = (_prediction(x, own) > 0) & (context.segment_ids != 0)
        if state is None:
            out = layers(constrain(x, "batch", "residual_length", None), only(context, passing_BL), None)
        else:
            passed_BS = written(state.passed, passing_BL, context.cache_index)
            out = layers(x, only(context, passing_BL, passed_BS), state.layers)
            state = Passed(out.state, passed_BS)
        weight_BL = jnp.where(passing_BL, score, 0.0).astype(x.dtype)
        y = x + (out.y - x) * weight_BL[..., None]
        return Out(constrain(y, "batch", "residual_length", None), state, out.sums)

    def report(self, counts: Mapping[str, Any]) -> dict[str, Float[Array, ""]]:
        return mispredicted(counts)


class Passed(NamedTuple):
    """The decoding state of a block: that of its layers, and which tokens of the cache passed."""

    layers: Any
    passed: Bool[Array, "B S"]


def _matrix(rngs: nnx.Rngs, shape: tuple[int, int], names: tuple[str | None, ...]) -> nnx.Param:
    drawn = normal(rngs.params(), shape, names, fan_in=shape[0])
    return nnx.Param(drawn[...], axes=Axes(names, Kind.MATRIX, cast=False))


def _prediction(x: Float[Array, "B L D"], own: Mapping[str, Any]) -> Float[Array, "B L"]:
    """Return the logit of every token's passing, in float32."""
    hidden_BLP = jax.nn.relu(in_float32(x, own["predictor_up"][...]))
    return in_float32(hidden_BLP, own["predictor_down"][...])[..., 0] + own["predictor_bias"][...][None]
