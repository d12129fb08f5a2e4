"""A mixture of experts in its plain form: every expert computes every token, and a router weighs what they say.

Shazeer et al. (2017), arXiv:1701.06538; the balance loss of each row and the bias of the router, which balances without
a loss, DeepSeek-V3 (2024), arXiv:2412.19437, section 2.1.2, and Wang et al. (2024), arXiv:2408.15664. Nothing is
dropped, and no token competes with one of another row, so the result does not depend on mesh, microbatches or schedule.
It takes the time of all experts: it is the reference for dispatched forms.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.axes import EXPERTS, Axes, Kind
from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.layer import Layer, Out, Sums, TokenContext
from jaxtrain.nn.param import Buffer, merge, normal, split
from jaxtrain.ranges import check_at_least_one, check_not_negative


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureConfig(FeedForwardConfig):
    """The sum of the `top_k` experts with the greatest probabilities, weighed by them.

    The weights are divided by their sum with `renormalise`. `balance` is the coefficient of the loss, which is 1 times
    it where all experts get the same. `bias_rate` is how far a step moves the bias that an expert has in the choice;
    0 leaves the bias out.
    """

    experts: int
    top_k: int
    expert: FeedForwardConfig
    renormalise: bool = True
    balance: float = 0.0
    bias_rate: float = 0.0
    paper: ClassVar[str] = "arXiv:1701.06538"
    neutral: ClassVar[tuple[str, ...]] = ("balance",)

    def __post_init__(self):
        check_at_least_one(self, "experts", "top_k")
        check_not_negative(self, "balance", "bias_rate")
        if self.top_k > self.experts:
            raise ValueError(f"top_k={self.top_k}: there are only experts={self.experts}")

    def build(self, d_model: int, *, rngs: nnx.Rngs) -> "Mixture":
        return Mixture(self, d_model, rngs=rngs)


class Mixture(Layer):
    def __init__(self, config: MixtureConfig, d_model: int, *, rngs: nnx.Rngs):
        self.config = c = config
        router = normal(rngs.params(), (d_model, c.experts), ("embed", None), fan_in=d_model)
        self.router = nnx.Param(router[...], axes=Axes(("embed", None), Kind.MATRIX, cast=False))
        self.experts = nnx.vmap(lambda r: c.expert.build(d_model, rngs=r))(rngs.split(c.experts))
        for variable in jax.tree.leaves(nnx.state(self.experts), is_leaf=_is_variable):
            variable.set_metadata(axes=variable.axes.stacked(EXPERTS))
        if buffers := split(self.experts)[1].buffers:
            raise ValueError(f"expert={c.expert!r}: an expert has no buffers of its own, and this has {min(buffers)}")
        if c.bias_rate:
            self.bias = Buffer(jnp.zeros(c.experts), axes=Axes((None,), Kind.VECTOR, cast=False))

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext) -> Out:
        probabilities_BLE = jax.nn.softmax(x.astype(jnp.float32) @ self.router[...], axis=-1)
        chosen_BLE = self._chosen(probabilities_BLE)
        weights_BLE = probabilities_BLE * chosen_BLE
        if self.config.renormalise:
            weights_BLE = weights_BLE / jnp.sum(weights_BLE, axis=-1, keepdims=True)
        graph, experts = split(self.experts)
        outs = jax.vmap(lambda expert: merge(graph, expert)(x, context))(experts)
        y_BLD = jnp.einsum("EBLD,BLE->BLD", outs.y, weights_BLE.astype(x.dtype))
        of_experts = {name: jnp.sum(term) for name, term in outs.sums.terms.items()}
        sums = self._sums(probabilities_BLE, chosen_BLE, context.real)
        return Out(y_BLD, sums=sums._replace(terms={**of_experts, **sums.terms}))

    def _chosen(self, probabilities: Float[Array, "B L E"]) -> Float[Array, "B L E"]:
        """Return 1 for the experts of a token and 0 for the others. The bias has a part in the choice alone."""
        scores = probabilities + self.bias[...][None, None] if self.config.bias_rate else probabilities
        _, best = jax.lax.top_k(jax.lax.stop_gradient(scores), self.config.top_k)
        return jnp.sum(jax.nn.one_hot(best, self.config.experts), axis=-2)

    def _sums(
        self, probabilities: Float[Array, "B L E"], chosen: Float[Array, "B L E"], real: Float[Array, "B L"]
    ) -> Sums:
        """Return the balance loss, summed over tokens, and the tokens of each expert.

        The loss of a row is sum_e f_e P_e: f_e is the share of its tokens that chose e, times experts / top_k, and P_e
        the mean probability of e. A row counts with its number of tokens.
        """
        c, real_BL1 = self.config, real[..., None]
        load_BE = jnp.sum(chosen * real_BL1, axis=1)
        counts = {"load": jnp.sum(load_BE, axis=0)}
        if not c.balance:
            return Sums(counts=counts)
        tokens_B1 = jnp.maximum(jnp.sum(real, axis=1, keepdims=True), 1.0)
        share_BE = load_BE * (c.experts / c.top_k) / tokens_B1
        loss = c.balance * jnp.sum(share_BE * jnp.sum(probabilities * real_BL1, axis=1))
        return Sums({"balance": loss}, counts)

    def update_buffers(self, counts: Mapping[str, Any]) -> None:
        """Raise the bias of experts that had less than the mean of a step, and lower that of those that had more."""
        if self.config.bias_rate:
            load = counts["load"]
            self.bias[...] += self.config.bias_rate * jnp.sign(jnp.mean(load) - load)


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)
