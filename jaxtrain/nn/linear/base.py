"""The base class of linears: linear maps of every token, whose weights may be stored in any form."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxtrain.nn.param import constant, merge, split
from jaxtrain.technique import Technique

Side = tuple[tuple[int, str], ...]  # (size, logical name) of each axis of one side of a linear


class LinearConfig(Technique):
    """A frozen dataclass that builds a linear map from the axes `inputs` to the axes `outputs`."""

    __slots__ = ()

    @abstractmethod
    def build(
        self, inputs: Side, outputs: Side, *, bias: bool = False, outputs_first: bool = False, rngs: nnx.Rngs
    ) -> "Linear":
        """Return the linear. With `outputs_first` its matrix is `[*outputs, *inputs]`, a table of rows."""

    def of_layer(self, *names: str) -> Mapping[str, "LinearConfig"]:
        """Return the configuration of each of a layer's linears, which have these names.

        Raises:
            ValueError: the configuration is for a linear that the layer does not have.
        """
        return dict.fromkeys(names, self)

    def check_head(self) -> None:
        """Raise ValueError if the head of a model cannot be such a linear: it multiplies with `dense()`, in tiles."""


def grouped_product() -> Callable[..., Array]:
    """Return `grouped_matmul`, which imports Pallas: not at the top, since that takes a second or more.

    Pallas adds a setting to those that JAX keeps traces by. A function in whose trace it is imported is traced and
    compiled again when it is next called. So what uses grouped products calls this when it is built.
    """
    from jaxtrain_kernels.grouped_matmul import grouped_matmul

    return grouped_matmul


class Linear(nnx.Module):
    """A linear map of every token. Its variables carry their facts (`Axes`); they are gathered before the call."""

    bias: nnx.Variable | None

    def __call__(self, x: Float[Array, "B L ..."]) -> Float[Array, "B L ..."]:
        """Return `x` times the matrix, plus the bias where there is one, in the dtype of `x`."""
        y = self.product(x)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)[None, None]

    @abstractmethod
    def product(self, x: Float[Array, "B L ..."]) -> Float[Array, "B L ..."]:
        """Return `x` times the matrix, in the dtype of `x`."""

    @abstractmethod
    def dense(self) -> Float[Array, "..."]:
        """Return the matrix of the map: `[*inputs, *outputs]`, or `[*outputs, *inputs]` with `outputs_first`."""

    def grouped(self, x: Float[Array, "N ..."], sizes: Int[Array, " E"]) -> Float[Array, "N ..."]:
        """Return what a stack of linears makes of rows, each linear of its group of consecutive ones.

        The variables of `self` have a leading axis: they are those of all linears. `sizes` are those of the groups.
        """
        graph, stacked = split(self)
        matrices = jax.vmap(lambda own: merge(graph, own).dense())(stacked)
        inputs = x.ndim - 1
        flat_EIO = matrices.reshape(len(matrices), math.prod(x.shape[1:]), -1)
        y = grouped_product()(x.reshape(len(x), -1), flat_EIO.astype(x.dtype), sizes)
        y = y.reshape(len(x), *matrices.shape[1 + inputs :])
        if self.bias is None:
            return y
        return y + jnp.repeat(self.bias[...].astype(x.dtype), sizes, axis=0, total_repeat_length=len(x))

    @abstractmethod
    def set_dense(self, matrix: Float[Array, "..."]) -> None:
        """Take the weights whose `dense()` is the matrix, or is nearest to it where the kind has not every matrix."""


def bias_of(outputs: Side) -> nnx.Param:
    """Return a bias of zeros. A bias along the model width is replicated."""
    sizes, names = zip(*outputs, strict=True)
    return constant(0.0, sizes, tuple("width" if name == "embed" else name for name in names))
