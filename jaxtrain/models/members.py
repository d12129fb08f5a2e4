"""Several models of one architecture that predict as one: the geometric mean of their probabilities.

Hinton et al. (2015), arXiv:1503.02531, section 1, allow the arithmetic or the geometric mean. The geometric one is the
softmax of the mean of the logits, whatever the temperature. So the members together have one vector of logits. Its
likeliest words can be stored for students of any temperature, and the members' logits are added one after another. By
either mean the targets have a loss that is at most the mean of the members' losses.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.nn.layer import Out
from jaxtrain.nn.param import merge, split
from jaxtrain.shapes import Batch, ModelState


class Members(nnx.Module):
    """Models that are stacked, `[members, ...]` on every leaf, and run one after another.

    The stack is not split over the mesh; each member is, as it would be alone.
    """

    def __init__(self, build: Callable[[nnx.Rngs], nnx.Module], size: int, *, rngs: nnx.Rngs):
        self.members: Any = nnx.vmap(build)(rngs.split(size))

    def axes(self) -> ModelState:
        """Return the facts about every variable. All are frozen."""
        return ModelState({}, {"members": stacked_axes(self.members.axes()).frozen})

    def hidden(self, batch: Batch) -> Out:
        """Return the hidden states of all members, side by side: `[B, L, members * D]`."""
        graph, stacked = split(self.members)
        _, hidden = jax.lax.scan(lambda _, member: (None, merge(graph, member).hidden(batch).y), None, stacked)
        return Out(jnp.moveaxis(hidden, 0, 2).reshape(*hidden.shape[1:3], -1))

    @property
    def head(self) -> "MeanHead":
        return MeanHead(*split(self.members))


class MeanHead(NamedTuple):
    """The head of all members: the mean of their logits."""

    graph: nnx.GraphDef
    stacked: ModelState

    def logits(self, x: Float[Array, "B L D"]) -> Float[Array, "B L W"]:
        """Return the mean of the logits, float32, of hidden states that `Members.hidden` returned.

        They are added one member after another, so that those of two exist at a time.
        """
        size = len(jax.tree.leaves(self.stacked)[0])
        of_members = jnp.moveaxis(x.reshape(*x.shape[:2], size, -1), 2, 0)

        def of_member(member: ModelState, hidden: Float[Array, "B L D"]) -> Float[Array, "B L W"]:
            return merge(self.graph, member).head.logits(hidden)

        def add(total: Float[Array, "B L W"], member) -> tuple[Float[Array, "B L W"], None]:
            return total + of_member(*member), None

        first, others = (jax.tree.map(part, (self.stacked, of_members)) for part in (lambda a: a[0], lambda a: a[1:]))
        total, _ = jax.lax.scan(add, of_member(*first), others)
        return total / size


def stacked_axes(axes: ModelState) -> ModelState:
    """Return the facts about the variables of stacked members, from those of one."""
    return jax.tree.map(lambda own: replace(own, names=(None, *own.names)), axes)
