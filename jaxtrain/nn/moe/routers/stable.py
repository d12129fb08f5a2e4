"""Routing in two stages: StableMoE, Dai et al. (2022), arXiv:2204.08396, section 3."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.axes import Axes, Kind
from jaxtrain.nn.layer import TokenContext
from jaxtrain.nn.moe.routers.base import Own, Router
from jaxtrain.nn.moe.routers.sigmoid import Sigmoid
from jaxtrain.nn.moe.routers.wrapper import RouterWrapper
from jaxtrain.nn.moe.routing import TINY, Scores, in_float32, told
from jaxtrain.nn.param import Buffer, normal
from jaxtrain.ranges import check_at_least_one, check_positive

LIGHT = {"table": Kind.TABLE, "centroids": Kind.MATRIX}  # of the light router


@dataclass(frozen=True, kw_only=True, slots=True)
class Stable(RouterWrapper):
    """`router` chooses and a light router of the token alone learns its choice; from `switch_step` on that chooses.

    The light router is a vector of `width` numbers for each token of the vocabulary, times one for each expert. Its
    loss is coefficient * its cross-entropy to the experts that were chosen. At the switch it is copied into buffers,
    which nothing changes any more, and the losses of balances end. Experts are always weighed by `router`.
    """

    vocab_size: int
    switch_step: int
    width: int = 50
    coefficient: float = 1.0
    router: Router = Sigmoid()
    paper: ClassVar[str] = "arXiv:2204.08396"
    neutral: ClassVar[tuple[str, ...]] = ("coefficient",)

    def __post_init__(self):
        check_at_least_one(self, "vocab_size", "switch_step", "width")
        check_positive(self, "coefficient")

    @property
    def reads_tokens(self) -> bool:
        return True

    @property
    def takes_bias(self) -> bool:
        return False

    def check_vocab(self, vocab_size: int) -> None:
        if vocab_size != self.vocab_size:
            raise ValueError(
                f"vocab_size={self.vocab_size} of {type(self).__name__}: the model has vocab_size={vocab_size}; "
                "give the same"
            )
        self.router.check_vocab(vocab_size)

    def build(self, d_model: int, experts: int, *, rngs: nnx.Rngs) -> dict[str, nnx.Variable]:
        shapes = {"table": (self.vocab_size, self.width), "centroids": (self.width, experts)}
        built = self.router.build(d_model, experts, rngs=rngs)
        for name, shape in shapes.items():
            value = normal(rngs.params(), shape, (None, None), fan_in=self.width)[...]
            axes = Axes((None, None), LIGHT[name], cast=False)
            built |= {f"light_{name}": nnx.Param(value, axes=axes), f"settled_{name}": Buffer(value, axes=axes)}
        return built | {"steps": Buffer(jnp.int32(0), axes=Axes((), Kind.VECTOR, cast=False))}

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext, own: Own) -> Scores:
        table, centroids = (
            jnp.where(self._settled(own), own[f"settled_{name}"][...], own[f"light_{name}"][...]) for name in LIGHT
        )
        light_BLE = in_float32(table[told(context.tokens, "tokens", self)], centroids)
        scores = self.router(x, context, own)
        judged_BLE = jnp.where(self._settled(own), light_BLE, scores.judged)
        return scores._replace(chosen_by=judged_BLE, aside=light_BLE)

    def loss(
        self, scores: Scores, chosen: Float[Array, "B L E"], real: Float[Array, "B L"], own: Own
    ) -> dict[str, Float[Array, ""]]:
        assert scores.aside is not None
        share_BLE = chosen / jnp.maximum(jnp.sum(chosen, axis=-1, keepdims=True), TINY)
        entropy = -jnp.sum(share_BLE * jax.nn.log_softmax(scores.aside, axis=-1) * real[..., None])
        light = {"distilled_router": self.coefficient * self.balanced(own) * entropy}
        return self.router.loss(scores, chosen, real, own) | light

    def balanced(self, own: Own) -> Float[Array, ""] | float:
        return jnp.where(self._settled(own), 0.0, self.router.balanced(own))

    def update(self, own: Own) -> None:
        self.router.update(own)
        for name in LIGHT:
            settled = own[f"settled_{name}"]
            settled[...] = jnp.where(self._settled(own), settled[...], own[f"light_{name}"][...])
        own["steps"][...] += 1

    def _settled(self, own: Own):
        return own["steps"][...] >= self.switch_step
