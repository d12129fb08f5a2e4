"""Fast feedforward networks: Belcak and Wattenhofer (2023), arXiv:2308.14711.

A binary tree of gates, each one neuron, over leaves that are small feed-forward layers. In training the result is the
sum of all leaves, each weighed by the chance that a token reaches it: FORWARD_T of the paper. The loss has the gates'
entropies, so that gates become decisions. Evaluation and generation follow one path to one leaf: FORWARD_I. The paper
adds up the entropies of a batch; here, as in all losses, the sum is divided by the tokens.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh
from jaxtyping import Array, Float, Int

from jaxtrain.axes import Axes, Kind
from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.layer import Layer, Out, Sums, TokenContext
from jaxtrain.nn.moe.dispatch import Dropless, EveryExpert
from jaxtrain.nn.moe.dispatch.region import check_experts
from jaxtrain.nn.moe.experts import Experts, build_experts
from jaxtrain.nn.moe.routing import TINY, Routing, in_float32
from jaxtrain.nn.param import normal, vector
from jaxtrain.ranges import check_at_least_one, check_not_negative


@dataclass(frozen=True, kw_only=True, slots=True)
class FastFeedForwardConfig(FeedForwardConfig):
    """2^levels leaves below a tree of gates: in training all of them, weighed; afterwards the one that a token reaches.

    `hardening` multiplies the sum of the gates' entropies in the loss.
    """

    levels: int
    leaf: FeedForwardConfig
    hardening: float
    paper: ClassVar[str] = "arXiv:2308.14711"
    neutral: ClassVar[tuple[str, ...]] = ("hardening",)

    def __post_init__(self):
        check_at_least_one(self, "levels")
        check_not_negative(self, "hardening")

    @property
    def leaves(self) -> int:
        return 1 << self.levels

    @property
    def neurons(self) -> int | None:
        of_leaf = self.leaf.neurons
        return None if of_leaf is None else self.leaves - 1 + self.leaves * of_leaf

    @property
    def evaluated_neurons(self) -> int | None:
        """A gate a level and one leaf, d + l neurons of 2^d - 1 + 2^d l."""
        of_leaf = self.leaf.neurons
        return None if of_leaf is None else self.levels + of_leaf

    def check_mesh(self, mesh: AbstractMesh) -> None:
        check_experts(self.leaves, f"levels={self.levels}: its number of leaves, {self.leaves},", mesh)

    def build(self, d_model: int, *, rngs: nnx.Rngs) -> "FastFeedForward":
        return FastFeedForward(self, d_model, rngs=rngs)


class FastFeedForward(Layer):
    def __init__(self, config: FastFeedForwardConfig, d_model: int, *, rngs: nnx.Rngs):
        self.config = c = config
        drawn = normal(rngs.params(), (c.leaves - 1, d_model), (None, "embed"), fan_in=d_model)
        self.gates = nnx.Param(drawn[...], axes=Axes((None, "embed"), Kind.MATRIX, cast=False))
        self.gate_bias = vector(jnp.zeros(c.leaves - 1), (None,))
        self.leaves = build_experts(c.leaf, c.leaves, d_model, used=1.0, rngs=rngs)
        self._check_path(d_model)

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext) -> Out:
        """Return the sum of all leaves in training, which has keys, and one leaf's result without them."""
        experts, leaves = Experts(self.leaves), self.config.leaves
        if context.keys is None:
            one_BLE = jax.nn.one_hot(self.reached(x), leaves)
            return Out(Dropless()(x, Routing(one_BLE, one_BLE, top_k=1, most=1), experts))
        logits_BLN = self._logits(x)
        weights_BLE = self.chances(jax.nn.sigmoid(logits_BLN))
        routing = Routing(jnp.ones_like(weights_BLE), weights_BLE, top_k=leaves, most=leaves)
        entropy_BL = jnp.sum(_entropy(logits_BLN), axis=-1)
        hardening = self.config.hardening * jnp.sum(entropy_BL * context.loss_weights)
        counts = {"entropy": jnp.sum(entropy_BL * context.real), "tokens": jnp.sum(context.real)}
        return Out(EveryExpert()(x, routing, experts), sums=Sums({"hardening": hardening}, counts))

    def reached(self, x: Float[Array, "B L D"]) -> Int[Array, "B L"]:
        """Return the number of the leaf that each token reaches. Only the gates on its path are computed."""
        x, gates_ND, bias_N = x.astype(jnp.float32), self.gates[...], self.gate_bias[...]
        node_BL = jnp.zeros(x.shape[:2], jnp.int32)
        for _ in range(self.config.levels):
            logit_BL = jnp.einsum("BLD,BLD->BL", x, gates_ND[node_BL], precision=jax.lax.Precision.HIGHEST)
            logit_BL = logit_BL + bias_N[node_BL]
            node_BL = 2 * node_BL + 1 + (logit_BL >= 0)
        return node_BL - (self.config.leaves - 1)

    def chances(self, gates: Float[Array, "B L N"]) -> Float[Array, "B L E"]:
        """Return the chance of each leaf, from those of going right at each gate. Gates below gate n are 2n+1, 2n+2."""
        chance = jnp.ones((*gates.shape[:2], 1))
        for level in range(self.config.levels):
            right = gates[..., (1 << level) - 1 : (2 << level) - 1]
            chance = jnp.stack((chance * (1 - right), chance * right), axis=-1).reshape(*gates.shape[:2], 2 << level)
        return chance

    def _check_path(self, d_model: int) -> None:
        """Raise ValueError for leaves that evaluation could not compute one by one."""
        experts, leaves = Experts(self.leaves), self.config.leaves
        rows, sizes = jnp.zeros((leaves, d_model)), jnp.ones(leaves, dtype=jnp.int32)
        try:
            jax.eval_shape(experts.grouped, experts.arrays, rows, sizes)
        except ValueError as error:
            raise ValueError(
                f"leaf={self.config.leaf!r}: a token computes one leaf alone, which takes plain linears and nothing "
                "else; take MLPConfig or GatedMLPConfig"
            ) from error

    def report(self, counts: Mapping[str, Any]) -> dict[str, Float[Array, ""]]:
        """Return the mean entropy of a gate in bits: 1 where it never decides, 0 where it always does."""
        gates = (self.config.leaves - 1) * math.log(2) * counts["tokens"]
        return {"undecided": counts["entropy"] / jnp.maximum(gates, TINY)} if counts else {}

    def _logits(self, x: Float[Array, "B L D"]) -> Float[Array, "B L N"]:
        return in_float32(x, self.gates[...].T) + self.gate_bias[...][None, None]


def _entropy(logits: Float[Array, "B L N"]) -> Float[Array, "B L N"]:
    """Return the entropy of a decision in nats, of its logit."""
    right = jax.nn.sigmoid(logits)
    return right * jax.nn.softplus(-logits) + (1 - right) * jax.nn.softplus(logits)
