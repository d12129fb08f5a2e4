"""A linear of somebody else: two thin matrices, x a b, as a test of what layers and suites take for granted."""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx

from jaxtrain.nn.linear.base import Linear, LinearConfig, Side, bias_of
from jaxtrain.nn.linear.dense import multiply
from jaxtrain.nn.param import normal


@dataclass(frozen=True, kw_only=True, slots=True)
class Thin(LinearConfig):
    """x a b + bias."""

    rank: int
    paper: ClassVar[str] = "a test"

    def build(self, inputs: Side, outputs: Side, *, bias=False, outputs_first=False, rngs: nnx.Rngs) -> "_Thin":
        return _Thin(self.rank, inputs, outputs, bias=bias, outputs_first=outputs_first, rngs=rngs)


class _Thin(Linear):
    def __init__(self, rank: int, inputs: Side, outputs: Side, *, bias: bool, outputs_first: bool, rngs: nnx.Rngs):
        self.inputs, self.outputs_first = len(inputs), outputs_first
        self.a = _matrix((*inputs, (rank, "rank")), math.prod(size for size, _ in inputs), rngs)
        self.b = _matrix(((rank, "rank"), *outputs), rank, rngs)
        self.bias = bias_of(outputs) if bias else None

    def __call__(self, x):
        y = multiply(multiply(x, self.a[...], inputs=self.inputs), self.b[...])
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)[None, None]

    def dense(self):
        return product(self.a[...], self.b[...], outputs_first=self.outputs_first)


def _matrix(axes: Side, fan_in: int, rngs: nnx.Rngs) -> nnx.Param:
    sizes, names = zip(*axes, strict=True)
    return normal(rngs.params(), sizes, names, fan_in=fan_in)


def product(a, b, *, outputs_first: bool):
    """Return the matrix of a and b."""
    if outputs_first:
        return jnp.tensordot(b, a, axes=(0, a.ndim - 1))
    return jnp.tensordot(a, b, axes=1)
