"""Assembly of Experts. Klagges et al. (2025), arXiv:2506.14794.

A difference is measured tensor by tensor, one expert of one repeat for itself: the Frobenius norm of the difference of
two tensors over that of a tensor of ones. The paper's child has the routed experts of one parent and all else of the
other, `names=("*.experts.*",)` with `weights=(0.0, 1.0)`.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from jaxtrain.nn.trainable.base import check_patterns
from jaxtrain.surgery.checkpoint_item import boxes
from jaxtrain.surgery.lazy import Box, LazyLeaf
from jaxtrain.surgery.merging.base import Merge, Merged, Own, Parameters

ELEMENTS = 1 << 18  # of a tensor that are compared at once


@dataclass(frozen=True, kw_only=True, slots=True)
class Assembly(Merge):
    """Interpolates tensors: the sum of the parents' times `weights`, for the parameters that `names` match.

    All other parameters, and integers, are the first parent's. So are tensors that differ by at most `threshold` from
    that in every other parent: root mean square of the differences of their elements.
    """

    weights: tuple[float, ...]
    names: tuple[str, ...] = ("*",)
    threshold: float = 0.0
    paper: ClassVar[str] = "arXiv:2506.14794"

    def __post_init__(self):
        if not all(0 <= weight <= 1 for weight in self.weights) or not math.isclose(sum(self.weights), 1):
            raise ValueError(f"weights={self.weights}: must be at least 0 and add to 1, so that the child is between")
        if not self.threshold >= 0:
            raise ValueError(f"threshold={self.threshold}: must be at least 0, which takes every tensor")

    def check(self, names: list[str], parents: int) -> None:
        check_patterns(self.names, names)
        if len(self.weights) != parents:
            raise ValueError(f"weights={self.weights}: there are {parents} parents; give one weight for each")

    def leaf(self, name: str, parents: Sequence[Parameters], own: Own) -> LazyLeaf:
        base, *others = each = [parent[name] for parent in parents]
        meant = any(fnmatchcase(name, pattern) for pattern in self.names)
        if self.threshold == math.inf or not meant or not jnp.issubdtype(base.dtype, jnp.floating):
            return base
        dtype = functools.reduce(jnp.promote_types, (parent.dtype for parent in each))
        whole = next((parent for parent, weight in zip(each, self.weights, strict=True) if weight == 1), None)

        depth = own.axes.leading if self.threshold else 0
        is_near = functools.cache(lambda: self._is_near(base, others, depth))

        def mixed(box: Box) -> np.ndarray:
            near = is_near()[box[:depth]]
            if whole is not None:
                child = whole.read(box).astype(dtype, copy=False)
                if near.any():
                    child[near] = base.read(box)[near]
                return child
            # The mean so far moves towards each parent: equal tensors stay as they are, and two boxes are in memory.
            child, total = base.read(box).astype(np.float32, copy=False), self.weights[0]
            for other, weight in zip(others, self.weights[1:], strict=True):
                if weight:
                    total += weight
                    step = other.read(box).astype(np.float32, copy=False)
                    step -= child
                    step *= np.float32(weight / total)
                    step[near] = 0
                    child += step
            return child

        return Merged(base.shape, dtype, mixed)

    def _is_near(self, base: LazyLeaf, others: Sequence[LazyLeaf], depth: int) -> np.ndarray:
        """Return for each tensor whether every other parent's differs by at most the threshold; False for a 0."""
        if not self.threshold:
            return np.zeros((), bool)
        return np.max([_difference(base, other, depth) for other in others], axis=0) <= self.threshold


def _difference(base: LazyLeaf, other: LazyLeaf, depth: int) -> np.ndarray:
    """Return the root mean square of the differences of each tensor. The first `depth` axes count tensors."""
    shape, tensor = base.shape[:depth], base.shape[depth:]
    squares = np.zeros(shape)
    for index in np.ndindex(*shape):
        for box in _pieces(tensor):
            where = (*(slice(i, i + 1) for i in index), *box)
            apart = other.read(where).astype(np.float64) - base.read(where)
            squares[index] += np.vdot(apart, apart)
    return np.sqrt(squares / math.prod(tensor))


def _pieces(shape: tuple[int, ...]) -> Iterator[Box]:
    """Yield boxes of whole rows, of about so many elements as are compared at once."""
    if not shape:
        return iter([()])
    rows = max(ELEMENTS // math.prod(shape[1:]), 1)
    return boxes(shape, (min(rows, shape[0]), *shape[1:]))
