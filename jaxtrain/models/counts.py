"""How many parameters a model has and how many multiply every token, read from their shapes and their facts."""

import math
from typing import NamedTuple

import jax

from jaxtrain.axes import Kind
from jaxtrain.shapes import ParamTree


class Counts(NamedTuple):
    """`multiplying` are the matrices: a token takes 6 operations for each of their elements, forward and backward."""

    parameters: int
    multiplying: int


def counts(params: ParamTree, axes: dict) -> Counts:
    """Return the counts of a tree of parameters or of their shapes, from it and the tree of their facts."""
    facts, shapes = jax.tree.leaves(axes), (leaf.shape for leaf in jax.tree.leaves(params))
    sizes = [(own.kind, math.prod(shape)) for own, shape in zip(facts, shapes, strict=True)]
    return Counts(sum(size for _, size in sizes), sum(size for kind, size in sizes if kind is Kind.MATRIX))
