"""The plain linear: one matrix."""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.nn.linear.base import Linear, LinearConfig, Side, bias_of
from jaxtrain.nn.param import normal
from jaxtrain.sharding import axis_size


@dataclass(frozen=True, kw_only=True, slots=True)
class Dense(LinearConfig):
    """x kernel + bias, with a kernel of variance 1/inputs."""

    paper: ClassVar[str] = "common practice"

    def build(
        self, inputs: Side, outputs: Side, *, bias: bool = False, outputs_first: bool = False, rngs: nnx.Rngs
    ) -> "_Dense":
        return _Dense(inputs, outputs, bias=bias, outputs_first=outputs_first, rngs=rngs)


class _Dense(Linear):
    def __init__(self, inputs: Side, outputs: Side, *, bias: bool, outputs_first: bool, rngs: nnx.Rngs):
        self.inputs, self.outputs_first = len(inputs), outputs_first
        sizes, names = zip(*((*outputs, *inputs) if outputs_first else (*inputs, *outputs)), strict=True)
        self.kernel = normal(rngs.params(), sizes, names, fan_in=math.prod(size for size, _ in inputs))
        self.bias = bias_of(outputs) if bias else None

    def product(self, x: Float[Array, "B L ..."]) -> Float[Array, "B L ..."]:
        return multiply(x, self.kernel[...], inputs=self.inputs, outputs_first=self.outputs_first)

    def dense(self) -> Float[Array, "..."]:
        return self.kernel[...]

    def set_dense(self, matrix: Float[Array, "..."]) -> None:
        self.kernel[...] = matrix


def multiply(
    x: Float[Array, "B L ..."], w: Float[Array, "..."], *, inputs: int = 1, outputs_first: bool = False
) -> Float[Array, "B L ..."]:
    """Return the product of the last `inputs` axes of every token with the first axes of `w`, or with its last ones.

    Batch and length are reshaped to one axis, so that the product and both its gradients are plain matrix products.
    With two axes XLA for CPU takes half as long again. They stay two where the length is split over devices.
    """
    fan_in, outputs = math.prod(x.shape[2:]), w.shape[:-inputs] if outputs_first else w.shape[inputs:]
    matrix = w.reshape(-1, fan_in) if outputs_first else w.reshape(fan_in, -1)
    rows = x.reshape(*x.shape[:2], fan_in) if axis_size("length") > 1 else x.reshape(-1, fan_in)
    y = jax.lax.dot_general(rows, matrix, (((rows.ndim - 1,), (int(outputs_first),)), ((), ())))
    return y.reshape(*x.shape[:2], *outputs)
