"""A mixture of experts: Shazeer et al. (2017), arXiv:1701.06538.

A router scores the experts for each token, a selection chooses some of them, and a dispatch adds up what they make of
the token. Each is a class of its own, in `nn/moe/`. Tokens compete with those of their own row alone, and losses are
sums over tokens, so the result depends neither on mesh nor on microbatches nor on the pipeline schedule.
"""

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh
from jaxtyping import Array, Float

from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.layer import Layer, Out, Sums, TokenContext
from jaxtrain.nn.moe.balances import Balance
from jaxtrain.nn.moe.balances.base import BiasAlone, Numbers
from jaxtrain.nn.moe.dispatch import Dispatch, Dropless
from jaxtrain.nn.moe.dispatch.region import check_experts, load_of
from jaxtrain.nn.moe.experts import Experts, build_experts, check_no_buffers, output_alone
from jaxtrain.nn.moe.observed import ROUTING, observed, scores_in_bfloat16
from jaxtrain.nn.moe.routers import Router, Softmax
from jaxtrain.nn.moe.routing import TINY, Routing, Scores
from jaxtrain.nn.moe.selections import Selection, TopK
from jaxtrain.nn.param import attach, attached
from jaxtrain.ranges import check_at_least_one, check_not_negative, check_positive
from jaxtrain.sharding import constrain

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureConfig(FeedForwardConfig):
    """The sum of a token's experts, weighed by the router, and of a shared layer that every token has.

    Of `experts` a token has `top_k`. Weights are divided by their sum with `renormalise`, and multiplied by `scale`.
    Numbers of the router above `experts` stand for `zero_experts`: for them the token is its own result.
    """

    experts: int
    top_k: int
    expert: FeedForwardConfig
    router: Router = Softmax()
    selection: Selection = TopK()
    renormalise: bool = True
    scale: float = 1.0
    balances: tuple[Balance, ...] = ()
    dispatch: Dispatch = Dropless()
    shared: FeedForwardConfig | None = None
    zero_experts: int = 0
    paper: ClassVar[str] = "arXiv:1701.06538"
    neutral: ClassVar[tuple[str, ...]] = ("dispatch",)

    def __post_init__(self):
        check_at_least_one(self, "experts", "top_k")
        check_not_negative(self, "zero_experts")
        check_positive(self, "scale")
        if self.top_k > self.routed:
            more = f" and zero_experts={self.zero_experts}" if self.zero_experts else ""
            raise ValueError(f"top_k={self.top_k}: there are only experts={self.experts}{more}")
        self.router.check(self.routed, self.top_k)
        self.selection.check(self.routed, self.top_k)
        for balance in self.balances:
            balance.check(self.numbers)
            for part in (self.router, self.selection):
                if balance.chooses and not part.takes_bias:
                    raise ValueError(f"balances: {balance!r} moves a bias, which {part!r} does not read; leave it out")
            if balance.evens and not self.selection.takes_bias:
                raise ValueError(
                    f"balances: {balance!r} evens loads that {self.selection!r} does not take from the scores of "
                    "experts; leave it out"
                )
            if not self.router.reads_tokens and self.router.task_count is None:
                raise ValueError(
                    f"balances: {balance!r} has nothing to change, {self.router!r} says the same of all tokens; "
                    "leave it out"
                )
        tells_apart = self.router.reads_tokens or self.task_count is not None or not self.selection.reads_scores
        if self.top_k < self.routed and not tells_apart:
            raise ValueError(
                f"router={self.router!r}: it gives all tokens the same {self.top_k} experts of {self.routed}; choose "
                "them with selection=@Hash()"
            )

    @property
    def numbers(self) -> Numbers:
        return Numbers(self.experts, self.zero_experts, self.top_k)

    @property
    def routed(self) -> int:
        """The number of experts that the router scores, those that compute nothing included."""
        return self.numbers.routed

    @property
    def task_count(self) -> int | None:
        counts = [part.task_count for part in (self.router, self.selection) if part.task_count is not None]
        return min(counts, default=None)

    def check_vocab(self, vocab_size: int) -> None:
        self.router.check_vocab(vocab_size)

    def check_decoding(self) -> None:
        if self.task_count is not None:
            raise ValueError(
                f"{self.router!r}, {self.selection!r}: experts are those of a task, and a prompt has none; take "
                "out the network of one task, jaxtrain convert RUN NEW_RUN --task 0"
            )
        if not self.selection.causal:
            raise ValueError(f"selection={self.selection!r}: it chooses by later tokens, so the model cannot generate")

    @property
    def competition(self) -> str | None:
        if not self.selection.causal:
            return f"selection={self.selection!r}"
        return f"dispatch={self.dispatch!r}" if self.dispatch.drops else None

    def check_alone(self) -> None:
        self.check_decoding()
        if self.dispatch.drops:
            raise ValueError(
                f"dispatch={self.dispatch!r}: the tokens of a row compete, so what one document is worth depends on "
                "others; take dispatch=@Dropless()"
            )

    def check_mesh(self, mesh: AbstractMesh) -> None:
        check_experts(self.experts, f"experts={self.experts}", mesh)
        self.dispatch.check_mesh(mesh)

    def remark(self, shape: tuple[int, int, int], mesh: AbstractMesh, value_bytes: int) -> str | None:
        text = self.dispatch.remark(load_of(shape, self.experts, self.top_k, mesh), value_bytes)
        return text and f"dispatch=@{type(self.dispatch).__name__}() {text}"

    def build(self, d_model: int, *, rngs: nnx.Rngs) -> "Mixture":
        return Mixture(self, d_model, rngs=rngs)


@functools.cache
def _warn_of_constant_weights(has_losses: bool) -> None:
    left = "that of balances alone" if has_losses else "none at all"
    log.warning(
        "top_k=1 and renormalise=True: the one expert of a token has weight 1, so no gradient of what it predicts "
        "reaches the router, but %s; set renormalise to False",
        left,
    )


class Mixture(Layer):
    def __init__(self, config: MixtureConfig, d_model: int, *, rngs: nnx.Rngs):
        self.config = c = config
        self.of_router = attach(self, c.router.build(d_model, c.routed, rngs=rngs))
        if self.of_router and c.top_k == 1 and c.renormalise and c.selection.most(c.routed, 1) == 1:
            _warn_of_constant_weights(any(type(balance).loss is not BiasAlone.loss for balance in c.balances))
        self.experts = build_experts(c.expert, c.experts, d_model, used=c.top_k / c.routed, rngs=rngs)
        self.of_balances = tuple(self._attached(balance) for balance in c.balances)
        self.shared = c.shared.build(d_model, rngs=rngs) if c.shared else None
        if self.shared is not None:
            check_no_buffers(self.shared, f"shared={c.shared!r}")

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext) -> Out:
        c = self.config
        decodes = context.cache_index is not None
        if decodes:
            c.check_decoding()
        scores = self.scores(x, context)
        routing = self.routing(scores, context)
        chosen_BLE, weights_BLE = (part[..., : c.experts] for part in (routing.chosen, routing.weights))
        computed = routing._replace(chosen=chosen_BLE, weights=weights_BLE)
        dispatch = Dropless() if decodes and c.dispatch.drops else c.dispatch
        y = dispatch(x, computed, Experts(self.experts))
        if c.zero_experts:
            y = y + x * jnp.sum(routing.weights[..., c.experts :], axis=-1, keepdims=True).astype(x.dtype)
        if self.shared is not None:
            y = y + output_alone(self.shared(x, context), "shared")
        sums = self._sums(scores, routing.chosen, dispatch.kept(computed), context.loss_weights)
        if ROUTING in context.taps:
            own = attached(self, self.of_router)
            rounded = self.routing(scores_in_bfloat16(c.router, x, context, own).of_each(c.routed), context)
            asked = observed(scores, routing, rounded, context.real)
            sums = sums._replace(counts={**sums.counts, **asked})
        return Out(y, sums=sums)

    def scores(self, x: Float[Array, "B L D"], context: TokenContext) -> Scores:
        """Return what the router says of each token and each expert."""
        return self.config.router(x, context, attached(self, self.of_router)).of_each(self.config.routed)

    def routing(self, scores: Scores, context: TokenContext) -> Routing:
        """Return the experts of each token. The biases of balances have a part in the choice alone."""
        c = self.config
        judged_BLE = jax.lax.stop_gradient(scores.judged)
        for balance, own in self._balances():
            bias = balance.bias(own)
            judged_BLE = judged_BLE if bias is None else judged_BLE + bias[None, None]
        chosen_BLE = c.selection(judged_BLE, c.top_k, context) * context.real[..., None]
        if scores.chosen_by is not None:
            chosen_BLE = chosen_BLE * (scores.chosen_by > -jnp.inf)
        weights_BLE = scores.weights * chosen_BLE
        if c.renormalise:
            weights_BLE = weights_BLE / jnp.maximum(jnp.sum(weights_BLE, axis=-1, keepdims=True), TINY)
        # Their layout, and that of their gradients, is that of the rows, whatever a dispatch asks of its region.
        chosen_BLE, weights_BLE = (constrain(x, "batch", "length", None) for x in (chosen_BLE, weights_BLE * c.scale))
        return Routing(chosen_BLE, weights_BLE, c.top_k, c.selection.most(c.routed, c.top_k))

    def _sums(
        self,
        scores: Scores,
        chosen: Float[Array, "B L E"],
        kept: Float[Array, "B L C"],
        real: Float[Array, "B L"],
    ) -> Sums:
        """Return the losses of the balances, the tokens of each expert, and how many of them it dropped."""
        router, of_router = self.config.router, attached(self, self.of_router)
        terms: dict[str, Array] = dict(router.loss(scores, chosen, real, of_router))
        for balance, own in self._balances():
            for name, loss in balance.loss(scores, chosen, real, own).items():
                loss = loss * router.balanced(of_router)
                terms[name] = terms[name] + loss if name in terms else loss
        load_E = jnp.sum(chosen, axis=(0, 1))
        dropped_E = load_E[: self.config.experts] - jnp.sum(kept, axis=(0, 1))
        return Sums(terms, {"load": load_E, "dropped": dropped_E})

    def update_buffers(self, counts: Mapping[str, Any]) -> None:
        for balance, own in self._balances():
            balance.update(counts["load"], own, self.config.numbers)
        self.config.router.update(attached(self, self.of_router))

    def report(self, counts: Mapping[str, Any]) -> dict[str, Float[Array, ""]]:
        """Return how many times the mean load the fullest expert has, and the share of choices that were dropped.

        Zero experts have no part in the first.
        """
        load, dropped = counts["load"], jnp.sum(counts["dropped"])
        computing = load[: self.config.experts]
        return {
            "fullest_expert": jnp.max(computing) / jnp.maximum(jnp.mean(computing), TINY),
            "dropped": dropped / jnp.maximum(jnp.sum(load), TINY),
        }

    def _attached(self, balance: Balance) -> tuple[str, ...]:
        """Attach the buffers of a balance. Return their names."""
        built = balance.build(self.config.routed)
        if taken := sorted(built.keys() & vars(self).keys()):
            raise ValueError(
                f"balances: {balance!r} has a buffer {taken[0]!r}, and another part of the mixture has one of this "
                "name; leave one of them out"
            )
        return attach(self, built)

    def _balances(self) -> list[tuple[Balance, dict[str, Any]]]:
        return [(b, attached(self, names)) for b, names in zip(self.config.balances, self.of_balances, strict=True)]
