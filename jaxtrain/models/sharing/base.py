"""The base class of sharings: which parameters all repeats of the pattern share."""

from abc import abstractmethod
from dataclasses import replace

import jax
from flax import nnx

from jaxtrain.nn.param import Frozen
from jaxtrain.shapes import ModelState
from jaxtrain.technique import Technique


class Sharing(Technique):
    """A frozen dataclass that says which parameters of the pattern are one for all repeats.

    The others, and all buffers, are each repeat's own. A shared parameter has no axis of repeats; its gradient is the
    sum of theirs.
    """

    __slots__ = ()

    @abstractmethod
    def selects(self, path: str, parameter: nnx.Variable) -> bool:
        """Tell whether a parameter is shared. `path` is such as `blocks.0.mixer.query.kernel`."""


def share(stack: nnx.Module, sharing: Sharing, repeats: int) -> None:
    """Put the parameter of the first repeat in the place of all, for those that are shared."""
    for at, module in list(nnx.iter_modules(stack)):
        for name, value in list(vars(module).items()):
            if isinstance(value, nnx.Param | Frozen) and sharing.selects(".".join(map(str, (*at, name))), value):
                axes = replace(value.axes, shared=True, passes=value.axes.passes * repeats)
                setattr(module, name, type(value)(value[...][0], axes=axes))


def own_and_shared(stack: ModelState, axes: ModelState) -> tuple[ModelState, ModelState]:
    """Return what each repeat has of its own, and what all share, with None in the place of the others' arrays."""
    own = jax.tree.map(lambda facts, x: None if facts.shared else x, axes, stack)
    shared = jax.tree.map(lambda facts, x: x if facts.shared else None, axes, stack)
    return own, shared


def whole_repeat(own: ModelState, shared: ModelState) -> ModelState:
    """Return the arrays of a repeat, from its own and the shared ones."""
    return jax.tree.map(lambda x, y: y if x is None else x, own, shared, is_leaf=lambda x: x is None)
