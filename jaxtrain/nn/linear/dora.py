"""Weight-decomposed low-rank adaptation. Liu et al. (2024), arXiv:2402.09353.

The norms of the columns are constants for the gradient (section 4.3). Every step multiplies the adapter out, so
it takes the time and the memory of a second weight.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.axes import Axes, Kind
from jaxtrain.nn.linear.adapted import Adapted
from jaxtrain.nn.linear.base import LinearConfig, Side
from jaxtrain.nn.linear.dense import Dense
from jaxtrain.nn.param import Adapter
from jaxtrain.ranges import check_at_least_one, check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class DoRA(LinearConfig):
    """magnitude * (base + scale a b) / |base + scale a b|, a norm and a trained magnitude for each output.

    The scale is alpha / rank. At the start b is zero and the magnitude is the norm, so nothing changes.
    """

    rank: int
    alpha: float = 16.0
    base: LinearConfig = Dense()
    paper: ClassVar[str] = "arXiv:2402.09353"

    def __post_init__(self):
        check_at_least_one(self, "rank")
        check_positive(self, "alpha")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def build(
        self, inputs: Side, outputs: Side, *, bias: bool = False, outputs_first: bool = False, rngs: nnx.Rngs
    ) -> "_DoRA":
        return _DoRA(self, inputs, outputs, bias=bias, outputs_first=outputs_first, rngs=rngs)

    def check_head(self) -> None:
        self.base.check_head()


class _DoRA(Adapted):
    def __init__(self, config: DoRA, inputs: Side, outputs: Side, *, bias: bool, outputs_first: bool, rngs: nnx.Rngs):
        super().__init__(config, inputs, outputs, bias=bias, outputs_first=outputs_first, rngs=rngs)
        self.inputs, self.outputs, self.outputs_first = len(inputs), len(outputs), outputs_first
        names = tuple("width" if name == "embed" else name for _, name in outputs)
        self.magnitude = Adapter(self._norms(self.base.dense()), axes=Axes(names, Kind.VECTOR, cast=False))

    def product(self, x: Float[Array, "B L ..."]) -> Float[Array, "B L ..."]:
        scale = self.magnitude[...] / _constant(self._norms(self._undirected()))
        return (self.base.product(x) + self.config.scale * self.update(x)) * scale.astype(x.dtype)[None, None]

    def dense(self) -> Float[Array, "..."]:
        matrix = self._undirected()
        scale = self.magnitude[...] / _constant(self._norms(matrix))
        return matrix * self._over_inputs(scale).astype(matrix.dtype)

    def set_dense(self, matrix: Float[Array, "..."]) -> None:
        """Give the base the matrix, less what the adapter adds to it, and the magnitude its norms."""
        self.base.set_dense(matrix - self.config.scale * self.update.dense())
        self.magnitude[...] = self._norms(self._undirected())

    def _undirected(self) -> Float[Array, "..."]:
        return self.base.dense() + self.config.scale * self.update.dense()

    def _norms(self, matrix: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return the norm of every output's weights, float32."""
        axes = range(matrix.ndim)[self.outputs :] if self.outputs_first else range(self.inputs)
        return jnp.sqrt(jnp.sum(jnp.square(matrix.astype(jnp.float32)), axis=tuple(axes)))

    def _over_inputs(self, scale: Float[Array, "..."]) -> Float[Array, "..."]:
        """Return a number for each output with an axis of size 1 for each input."""
        axes = range(-self.inputs, 0) if self.outputs_first else range(self.inputs)
        return jnp.expand_dims(scale, tuple(axes))


def _constant(norms: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return norms to divide by, without a gradient: 1 for an output whose weights are all zero."""
    return jax.lax.stop_gradient(jnp.where(norms > 0, norms, 1.0))
