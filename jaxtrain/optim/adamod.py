"""AdaMod, Adam whose rates are bounded by their own average. Ding et al. (2019), arXiv:1910.12249, algorithm 1.

The rate of an element, e = rate / (sqrt(v) + epsilon), is averaged without correction, s <- b3 s + (1 - b3) e, and
w <- w - min(e, s) m, where m and v are Adam's, without bias. As in the paper and not as in the authors' code, e has no
part of m's correction. So the first rates are 1 - b3 of Adam's, and grow from there: a warm-up that needs no steps.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.matrix import decays
from jaxtrain.optim.schedules import Schedule
from jaxtrain.ranges import check_decay, check_not_negative, check_positive


class AdaModState(NamedTuple):
    """The moments, and the averages of the elements' rates."""

    count: Int[Array, ""]  # type: ignore[assignment]  # hides tuple.count; optax and checkpoints have this name
    m: dict
    v: dict
    rates: dict


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaMod(Optimizer):
    """Adam without rates that jump: each is at most its long average, which begins near 0 and needs no warm-up.

    The state has 12 bytes a parameter: the moments and the averages of the rates.
    """

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.999
    b3: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    paper: ClassVar[str] = "arXiv:1910.12249"

    def __post_init__(self):
        check_decay(self, "b1", "b2", "b3")
        check_positive(self, "epsilon")
        check_not_negative(self, "weight_decay")

    def build(self, rate: optax.Schedule, axes: dict) -> optax.GradientTransformation:
        def init(params: dict) -> AdaModState:
            return AdaModState(jnp.zeros((), jnp.int32), *(optax.tree.zeros_like(params) for _ in range(3)))

        def update(gradients: dict, state: AdaModState, params: dict | None = None) -> tuple[dict, AdaModState]:
            step, now = optax.safe_increment(state.count), rate(state.count)
            m = optax.tree.update_moment(gradients, state.m, self.b1, 1)
            v = optax.tree.update_moment_per_elem_norm(gradients, state.v, self.b2, 2)
            momentum, squares = (optax.tree.bias_correction(x, b, step) for x, b in ((m, self.b1), (v, self.b2)))
            own = jax.tree.map(lambda x: (now / (jnp.sqrt(x) + self.epsilon)).astype(x.dtype), squares)
            rates = optax.tree.update_moment(own, state.rates, self.b3, 1)
            updates = jax.tree.map(lambda e, s, m: -jnp.minimum(e, s) * m, own, rates, momentum)
            return updates, AdaModState(step, m, v, rates)

        decay = optax.add_decayed_weights(lambda count: -self.weight_decay * rate(count), mask=decays(axes))
        return optax.chain(optax.GradientTransformation(init, update), decay)
