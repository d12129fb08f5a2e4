"""Mixture of Recursions with token choice: Bae et al. (2025), arXiv:2507.10524, section 2.2.

A router reads each token before the first pass and says how often it passes. Any number of tokens may take part in a
pass, so all are computed, and those that stopped are hidden. Here the router's weight multiplies what the block adds to
the stream: with a weight of 1 a pass is the block as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxtrain.axes import Axes, Kind
from jaxtrain.nn.depth.base import Depth, Layers
from jaxtrain.nn.depth.membership import with_own
from jaxtrain.nn.depth.passes import Passes, all_computed, initial_passes
from jaxtrain.nn.layer import Out, Sums, TokenContext
from jaxtrain.nn.mixers.base import MixerConfig
from jaxtrain.nn.moe.balances.row_loss import RowLoss
from jaxtrain.nn.moe.routing import TINY, Scores, in_float32
from jaxtrain.nn.param import normal
from jaxtrain.ranges import check_at_least_one, check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenChoiceRecursion(Depth):
    """Each token passes 1 to `times` times, as a softmax router says before the first pass.

    With `shared_keys` all passes attend to the keys and values of the first. `coefficient` is the loss of a router that
    gives every number of passes to as many tokens (`RowLoss`).
    """

    times: int
    shared_keys: bool = False
    coefficient: float = 0.1
    paper: ClassVar[str] = "arXiv:2507.10524"
    neutral: ClassVar[tuple[str, ...]] = ("coefficient",)

    def __post_init__(self):
        check_at_least_one(self, "times")
        check_positive(self, "coefficient")

    @property
    def passes(self) -> float:
        return float(self.times)  # all are computed

    def build(self, d_model: int, *, rngs: nnx.Rngs) -> dict[str, nnx.Variable]:
        drawn = normal(rngs.params(), (d_model, self.times), ("embed", None), fan_in=d_model)
        return {"router": nnx.Param(drawn[...], axes=Axes(("embed", None), Kind.MATRIX, cast=False))}

    def mixing_flops(self, mixer: MixerConfig, length: int) -> float:
        return self.times * mixer.mixing_flops(length)

    def initial_state(self, layers: Any, batch: int, length: int) -> Passes:
        return initial_passes(layers, batch, length, times=self.times, shared_keys=self.shared_keys)

    def __call__(
        self, layers: Layers, x: Float[Array, "B L D"], context: TokenContext, state: Any, own: Mapping[str, Any]
    ) -> Out:
        logits_BLE = in_float32(x, own["router"][...])
        scores = Scores(logits_BLE, jax.nn.softmax(logits_BLE, axis=-1))
        last_BL = jnp.argmax(logits_BLE, axis=-1)
        weight_BL = jnp.max(scores.weights, axis=-1)

        def until_last(number: int, x: Float[Array, "B L D"], before: Bool[Array, "B L"]):
            return before & (last_BL >= number), weight_BL

        out = all_computed(layers, x, context, state, until_last, times=self.times, shared_keys=self.shared_keys)
        chosen_BLE = jax.nn.one_hot(last_BL, self.times) * context.real[..., None]
        (balance,) = RowLoss(coefficient=self.coefficient).loss(scores, chosen_BLE, context.real, {}).values()
        own_sums = Sums({"depth_balance": balance}, {"load": jnp.sum(chosen_BLE, axis=(0, 1))})
        return out._replace(sums=with_own(out.sums, own_sums))

    def report(self, counts: Mapping[str, Any]) -> dict[str, Float[Array, ""]]:
        """Return how many times the mean number of tokens stopped after the pass after which most did."""
        load = counts["load"]
        return {"fullest_depth": jnp.max(load) / jnp.maximum(jnp.mean(load), TINY)}
