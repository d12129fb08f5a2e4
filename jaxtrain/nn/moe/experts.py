"""Experts: feed-forward layers of one form, whose variables are stacked over an axis `experts`.

Experts are split as wholes, over the mesh axes `tensor` and `expert`: no expert is computed in parts.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxtrain.axes import EXPERTS
from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.layer import Layer, Out, TokenContext
from jaxtrain.nn.linear.base import Linear, grouped_product
from jaxtrain.nn.linear.of_layer import linears_of, outside_of, put
from jaxtrain.nn.param import axes_of, is_variable, merge, split
from jaxtrain.shapes import ModelState


def build_experts(config: FeedForwardConfig, experts: int, d_model: int, *, used: float, rngs: nnx.Rngs) -> Layer:
    """Return the layers as one module, with the variables of all of them. A token has the share `used` of them."""
    grouped_product()
    built = nnx.vmap(lambda r: config.build(d_model, rngs=r))(rngs.split(experts))
    for variable in jax.tree.leaves(nnx.state(built), is_leaf=is_variable):
        variable.set_metadata(axes=replace(variable.axes, used=variable.axes.used * used).stacked(EXPERTS))
    check_no_buffers(built, f"expert={config!r}")
    return built


def check_no_buffers(layer: Layer, what: str) -> None:
    """Raise ValueError if a layer within a mixture has buffers, which nothing would replace."""
    if buffers := split(layer)[1].buffers:
        raise ValueError(f"{what}: a layer within a mixture has no buffers of its own, and this has {min(buffers)}")


class Experts:
    """Stacked feed-forward layers, and the ways to call them. They have no noise, no sums and no taps.

    `arrays` of the methods are those of all experts, or of the ones that a device has.
    """

    def __init__(self, stacked: Layer):
        self.graph, self.arrays = split(stacked)
        self.axes = axes_of(stacked)
        self.count = len(jax.tree.leaves(self.arrays)[0])

    def each(self, arrays: ModelState, x: Float[Array, "E B L D"]) -> Float[Array, "E B L D"]:
        """Return what each expert makes of its own rows."""
        return jax.vmap(lambda own, x: output_alone(merge(self.graph, own)(x, _context(x)), "expert"))(arrays, x)

    def all_of(self, arrays: ModelState, x: Float[Array, "B L D"]) -> Float[Array, "E B L D"]:
        """Return what each expert makes of the same rows."""
        return jax.vmap(lambda own: output_alone(merge(self.graph, own)(x, _context(x)), "expert"))(arrays)

    def grouped(self, arrays: ModelState, x: Float[Array, "N D"], sizes: Int[Array, " E"]) -> Float[Array, "N D"]:
        """Return what each expert makes of its group of consecutive rows; 0 in rows behind the last group.

        Raises:
            ValueError: the layer has variables outside of its linears, which grouped products do not serve.
        """
        layer = merge(self.graph, arrays)
        linears = linears_of(layer)
        if (name := outside_of(linears, layer)) is not None:
            raise ValueError(
                f"expert: {name} is in none of its linears, which alone multiply sorted rows; "
                "take dispatch=@EveryExpert() or @Capacity()"
            )
        for path, linear in linears.items():
            put(layer, path, _Grouped(linear, sizes))
        y = output_alone(layer(x[None], _context(x[None])), "expert")[0]
        return jnp.where((jnp.arange(len(x)) < jnp.sum(sizes))[:, None], y, 0)


class _Grouped(nnx.Module):
    """A linear of all experts, called with the rows of all experts one after another."""

    def __init__(self, stacked: Linear, sizes: Int[Array, " E"]):
        self.stacked, self.sizes = stacked, nnx.data(sizes)

    def __call__(self, x: Float[Array, "1 N ..."]) -> Float[Array, "1 N ..."]:
        return self.stacked.grouped(x[0], self.sizes)[None]


def output_alone(out: Out, what: str) -> Float[Array, "B L D"]:
    """Return what a layer within a mixture adds. Raises ValueError if it has sums as well, which nothing would read."""
    if out.sums.terms or out.sums.counts:
        names = ", ".join(sorted({*out.sums.terms, *out.sums.counts}))
        raise ValueError(f"{what}: a layer within a mixture has no sums of its own, and this has {names}")
    return out.y


def _context(x: Float[Array, "B L D"]) -> TokenContext:
    """Return the context of rows that come from anywhere."""
    nowhere = jnp.zeros(x.shape[:2], jnp.int32)
    return TokenContext(nowhere, nowhere + 1, nowhere, nowhere + 1)
