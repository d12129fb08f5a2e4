"""The base class of balances: what keeps the loads of experts alike, and routers well-behaved."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.axes import Axes, Kind
from jaxtrain.nn.moe.routing import TINY, Scores
from jaxtrain.nn.param import Buffer
from jaxtrain.technique import Technique

Own = Mapping[str, Any]  # the buffers that a balance built, by their names


class Numbers(NamedTuple):
    """The numbers of a mixture: experts that compute, those that compute nothing, and experts of a token."""

    experts: int
    zero_experts: int
    top_k: int

    @property
    def routed(self) -> int:
        """The number of experts that are scored."""
        return self.experts + self.zero_experts


class Balance(Technique):
    """A frozen dataclass with a loss, a bias in the choice of experts, or both.

    A loss is a sum over tokens, so it is exact on any mesh, with microbatches and in a pipeline.
    """

    __slots__ = ()
    evens: ClassVar[bool] = False  # whether its loss evens the loads, so that a choice by scores must be there

    @property
    def chooses(self) -> bool:
        """Whether it has a bias, so that a trained model computes something else without it."""
        return type(self).bias is not Balance.bias

    @property
    def weight(self) -> float:
        """The loss of a layer whose loads are alike, as far as it is one of loads."""
        return 0.0

    def check(self, numbers: Numbers) -> None:
        """Raise ValueError where the numbers do not fit."""

    def build(self, experts: int) -> dict[str, nnx.Variable]:
        """Return the balance's buffers by their names in the mixture."""
        return {}

    def bias(self, own: Own) -> Float[Array, " E"] | None:
        """Return what is added to the scores where experts are chosen; it has no part in the weights."""
        return None

    @abstractmethod
    def loss(
        self, scores: Scores, chosen: Float[Array, "B L E"], real: Float[Array, "B L"], own: Own
    ) -> dict[str, Float[Array, ""]]:
        """Return the losses by name, each summed over the tokens, weighed by `real`. `chosen` is 0 in padding.

        `real` is 0 in padding and 1 elsewhere; where a part of a row passes the block, it is what a token of that part
        stands for, one number a row.
        """

    def update(self, load: Float[Array, " E"], own: Own, numbers: Numbers) -> None:
        """Replace the buffers. `load` is the number of tokens of each expert in a whole step."""


class BiasAlone(Balance):
    """A balance by a bias in the choice of experts, without a loss."""

    __slots__ = ()

    @abstractmethod
    def bias(self, own: Own) -> Float[Array, " E"]:
        """Return what is added to the scores where experts are chosen."""

    def loss(
        self, scores: Scores, chosen: Float[Array, "B L E"], real: Float[Array, "B L"], own: Own
    ) -> dict[str, Float[Array, ""]]:
        return {}


def even_shares(experts: int) -> Buffer:
    """Return the shares of the experts in the choices, times their number, as if all loads were alike."""
    return Buffer(jnp.ones(experts), axes=Axes((None,), Kind.VECTOR, cast=False))


def shares(load: Float[Array, " E"]) -> Float[Array, " E"]:
    """Return the shares of the experts in the choices of a step, times their number: 1 where all are alike."""
    return load * len(load) / jnp.maximum(jnp.sum(load), TINY)


def choosing(balances: Iterable[Any]) -> tuple:
    """Return those of the balances that choose. Without the others a trained model computes the same."""
    return tuple(balance for balance in balances if not isinstance(balance, Balance) or balance.chooses)
