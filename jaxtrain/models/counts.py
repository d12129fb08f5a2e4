"""The number of a model's parameters, and of those that multiply activations, from their shapes and their facts."""

import math
from typing import NamedTuple

import jax

from jaxtrain.axes import Kind
from jaxtrain.shapes import ModelState, ParamTree

MULTIPLYING = (Kind.MATRIX, Kind.CODES)


class Counts(NamedTuple):
    """Numbers of elements. A token uses the `active` ones, in the mean, and multiplies with `multiplying` ones.

    What a token passes several times is active once: of a mixture, the experts of one pass. `multiplying` ones are
    those of matrices, once for each pass. For each a token takes 6 FLOPs, forward and backward. Frozen matrices have no
    gradient of their own, so a token takes 4 FLOPs for each of their elements.
    """

    parameters: int
    active: int
    multiplying: int
    frozen: int
    frozen_active: int
    frozen_multiplying: int


def counts(shapes: ModelState, axes: ModelState) -> Counts:
    """Return the counts of a model, from the shapes of its arrays and the facts about them."""
    return Counts(*_of_tree(shapes.params, axes.params), *_of_tree(shapes.frozen, axes.frozen))


def _of_tree(tree: ParamTree, axes: ParamTree) -> tuple[int, int, int]:
    """Return the number of elements of all arrays, of those that a token uses, and of those that multiply it."""
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)]
    facts = jax.tree.leaves(axes)
    active = [round(size * fact.used * min(fact.passes, 1.0)) for size, fact in zip(sizes, facts, strict=True)]
    uses = [round(size * fact.used * fact.passes) for size, fact in zip(sizes, facts, strict=True)]
    multiplying = [size for size, fact in zip(uses, facts, strict=True) if fact.kind in MULTIPLYING]
    return sum(sizes), sum(active), sum(multiplying)
