"""Muon: momentum whose singular values are made one. Jordan et al. (2024), kellerjordan.github.io/posts/muon.

The momentum is Nesterov's without bias correction, as in the reference and in `torch.optim.Muon`: m <- momentum m + g,
then g + momentum m. (They scale both by 1 - momentum, which the iteration divides out. optax corrects the bias.) Five
rounds of the Newton-Schulz iteration x <- a x + (b x x^T + c (x x^T)^2) x with the reference's (a, b, c) =
(3.4445, -4.7750, 2.0315) bring singular values to about 0.7 to 1.2. Updates are scaled to the size of AdamW's as in Liu
et al. (2025), arXiv:2502.16982, so that one learning rate and weight decay serve both. Deviation: the iteration is in
float32, the reference's in bfloat16.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxtrain.axes import Axes, Kind
from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.matrix import matrix_shape
from jaxtrain.optim.per_layer import per_layer
from jaxtrain.optim.schedules import Schedule
from jaxtrain.ranges import check_decay, check_not_negative

ROUNDS, COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)
LEAST_NORM = 1e-7
ADAMW_RMS = 0.2  # root mean square of an update of AdamW, Liu et al. (2025), section 2.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Muon(Optimizer):
    """Orthogonalised momentum on the matrices of the blocks, Adam without decay on everything else."""

    learning_rate: Schedule
    momentum: float = 0.95
    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 0.1
    paper: ClassVar[str] = "kellerjordan.github.io/posts/muon"

    def __post_init__(self):
        check_decay(self, "momentum", "b1", "b2")
        check_not_negative(self, "weight_decay")

    @property
    def momentum_key(self) -> str:
        return "momentum"

    def decays(self, axes: dict) -> dict:
        return jax.tree.map(takes, axes)

    def build(self, rate: optax.Schedule, axes: dict) -> optax.GradientTransformation:
        muon = optax.chain(
            optax.trace(self.momentum, nesterov=True),
            per_layer(_orthogonalise(axes), axes),
            optax.add_decayed_weights(self.weight_decay),
            optax.scale_by_learning_rate(rate),
        )
        labels = jax.tree.map(lambda facts: "muon" if takes(facts) else "adam", axes)
        return optax.partition({"muon": muon, "adam": optax.adam(rate, b1=self.b1, b2=self.b2)}, labels)


def takes(axes: Axes) -> bool:
    """Tell whether a parameter is a matrix of a block that reads or writes the residual stream."""
    return (axes.in_stack or axes.shared) and axes.kind is Kind.MATRIX and "embed" in axes.names


def _orthogonalise(axes: dict) -> optax.GradientTransformation:
    """Return the transformation that orthogonalises the matrices of one layer."""

    def one(facts: Axes, x: Array) -> Array:
        if not takes(facts):
            return x  # masked: Adam updates it
        shape = matrix_shape(facts, x.shape)
        return ADAMW_RMS * max(shape) ** 0.5 * newton_schulz(x.reshape(shape)).reshape(x.shape)

    return optax.stateless(lambda updates, _: jax.tree.map(one, axes, updates))


def newton_schulz(x: Float[Array, "rows columns"]) -> Float[Array, "rows columns"]:
    """Return U S V^T with S about 1, for the singular vectors U, V of x. Singular values near 0 end below 1."""
    if x.shape[0] > x.shape[1]:
        return newton_schulz(x.T).T  # the products with x x^T are the smaller ones
    a, b, c = COEFFICIENTS
    x = x / jnp.maximum(jnp.linalg.norm(x), LEAST_NORM)
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x
