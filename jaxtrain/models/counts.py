"""How many parameters a model has and how many multiply every token, read from their shapes and their facts."""

import math
from typing import NamedTuple

import jax

from jaxtrain.axes import Kind
from jaxtrain.shapes import ModelState, ParamTree


class Counts(NamedTuple):
    """`multiplying` are the matrices: a token takes 6 operations for each of their elements, forward and backward.

    Frozen ones have no gradient of their own, and take 4.
    """

    parameters: int
    multiplying: int
    frozen: int
    frozen_multiplying: int


def counts(shapes: ModelState, axes: ModelState) -> Counts:
    """Return the counts of a model, from the shapes of its arrays and the facts about them."""
    return Counts(*_of_tree(shapes.params, axes.params), *_of_tree(shapes.frozen, axes.frozen))


def _of_tree(tree: ParamTree, axes: ParamTree) -> tuple[int, int]:
    """Return how many elements there are, and how many of them are those of matrices."""
    facts = jax.tree.leaves(axes)
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)]
    return sum(sizes), sum(size for own, size in zip(facts, sizes, strict=True) if own.kind is Kind.MATRIX)
