"""A linear of low rank: Sainath et al. (2013), doi:10.1109/ICASSP.2013.6638949, in every layer and from the start.

The product of the two factors at the start has the variance of a plain linear: 1/inputs.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.nn.linear.base import Linear, LinearConfig, Side, bias_of
from jaxtrain.nn.linear.dense import multiply
from jaxtrain.nn.param import normal
from jaxtrain.ranges import check_at_least_one


@dataclass(frozen=True, kw_only=True, slots=True)
class LowRank(LinearConfig):
    """x a b + bias, with an inner axis of `rank`."""

    rank: int
    paper: ClassVar[str] = "doi:10.1109/ICASSP.2013.6638949"

    def __post_init__(self):
        check_at_least_one(self, "rank")

    def build(
        self, inputs: Side, outputs: Side, *, bias: bool = False, outputs_first: bool = False, rngs: nnx.Rngs
    ) -> "_LowRank":
        return _LowRank(self, inputs, outputs, bias=bias, outputs_first=outputs_first, rngs=rngs)


class _LowRank(Linear):
    def __init__(
        self, config: LowRank, inputs: Side, outputs: Side, *, bias: bool, outputs_first: bool, rngs: nnx.Rngs
    ):
        self.factors = Factors(config.rank, inputs, outputs, outputs_first=outputs_first, rngs=rngs)
        self.bias = bias_of(outputs) if bias else None

    def product(self, x: Float[Array, "B L ..."]) -> Float[Array, "B L ..."]:
        return self.factors(x)

    def dense(self) -> Float[Array, "..."]:
        return self.factors.dense()

    def set_dense(self, matrix: Float[Array, "..."]) -> None:
        """Take the nearest matrix of the rank (Eckart and Young, 1936), its singular values split evenly."""
        self.factors.set_dense(matrix)


class Factors(nnx.Module):
    """Two thin matrices, `a [*inputs, rank]` of variance 1/inputs and `b [rank, *outputs]`, and their product.

    `b` has variance 1/rank, or is zero.
    """

    def __init__(
        self,
        rank: int,
        inputs: Side,
        outputs: Side,
        *,
        outputs_first: bool,
        zero: bool = False,
        variable: type[nnx.Param] = nnx.Param,
        rngs: nnx.Rngs,
    ):
        self.inputs, self.outputs_first = len(inputs), outputs_first
        fan_in = math.prod(size for size, _ in inputs)
        sizes, names = zip(*inputs, (rank, "rank"), strict=True)
        self.a = normal(rngs.params(), sizes, names, fan_in=fan_in, variable=variable)
        sizes, names = zip((rank, "rank"), *outputs, strict=True)
        self.b = normal(rngs.params(), sizes, names, fan_in=rank, variable=variable)
        if zero:
            self.b[...] = jnp.zeros_like(self.b[...])

    def __call__(self, x: Float[Array, "B L ..."]) -> Float[Array, "B L ..."]:
        return multiply(multiply(x, self.a[...], inputs=self.inputs), self.b[...])

    def dense(self) -> Float[Array, "..."]:
        if self.outputs_first:
            return jnp.tensordot(self.b[...], self.a[...], axes=(0, self.a.ndim - 1))
        return jnp.tensordot(self.a[...], self.b[...], axes=1)

    def set_dense(self, matrix: Float[Array, "..."]) -> None:
        outputs = self.b.ndim - 1
        if self.outputs_first:
            matrix = jnp.moveaxis(matrix, range(outputs), range(-outputs, 0))
        rank = self.a.shape[-1]
        u, s, v = jnp.linalg.svd(matrix.reshape(math.prod(self.a.shape[:-1]), -1), full_matrices=False)
        kept = min(rank, len(s))
        root, none = jnp.sqrt(s[:kept]), rank - kept
        self.a[...] = jnp.pad(u[:, :kept] * root[None], ((0, 0), (0, none))).reshape(self.a.shape)
        self.b[...] = jnp.pad(root[:, None] * v[:kept], ((0, none), (0, 0))).reshape(self.b.shape)
