"""The base class of merging: the parameters of one model, the child, from those of several of one architecture.

The child may have layers of another kind. A merge goes one parameter at a time. Parents and child are LazyLeafs, so a
child is written while its parents are read, chunk by chunk. Nothing runs on devices: a checkpoint that was written from
shards is read from its files.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxtrain.axes import Axes
from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.shapes import ParamTree
from jaxtrain.surgery.lazy import Box, LazyLeaf, Rows
from jaxtrain.technique import Technique

Parameters = Mapping[str, LazyLeaf]  # of one model, by name


class Own(NamedTuple):
    """The facts about a parameter of the child, and its shape and dtype."""

    axes: Axes
    shape: tuple[int, ...]
    dtype: np.dtype


class Merge(Technique):
    """A frozen dataclass that makes a model from several of one architecture, of which the first is the base."""

    __slots__ = ()

    def check(self, names: list[str], parents: int) -> None:
        """Raise ValueError where it cannot merge so many models, whose parameters have these names."""

    def model(self, config: DecoderConfig, parents: int) -> DecoderConfig:
        """Return the configuration of the child of so many models of one configuration.

        Raises:
            ValueError: they are too few, or have a layer that it cannot merge.
        """
        return config

    @abstractmethod
    def leaf(self, name: str, parents: Sequence[Parameters], own: Own) -> LazyLeaf:
        """Return a parameter of the child, which reads those of the parents when it is read.

        `name` is such as `stacks.blocks.blocks.0.mlp.experts.up.kernel`. The first `own.axes.leading` axes count
        tensors: repeats, and experts of a repeat.
        """


class Merged(LazyLeaf):
    """A parameter each box of which is a function of the box."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, compute: Callable[[Box], np.ndarray]):
        self.shape, self.dtype = shape, dtype
        self._compute = compute

    def read(self, box: Box = ()) -> np.ndarray:
        return self._compute(box).astype(self.dtype, copy=False)

    def rows(self) -> Rows:
        return lambda repeat: self.read() if repeat is None else self.read((slice(repeat, repeat + 1),))[0]


class InMemory(LazyLeaf):
    """A parameter that is in memory, as an array."""

    def __init__(self, array: np.ndarray):
        self._array, self.shape, self.dtype = array, array.shape, array.dtype

    def read(self, box: Box = ()) -> np.ndarray:
        return np.array(self._array[box])

    def rows(self) -> Rows:
        return lambda repeat: self._array if repeat is None else self._array[repeat]


def merged(merge: Merge, parents: Sequence[ParamTree], axes: ParamTree, shapes: ParamTree) -> ParamTree:
    """Return the parameters of the child of some models.

    Leaves of `parents` are LazyLeafs or arrays; `axes` and `shapes` are those of the child, `merge.model(...)`.

    Raises:
        ValueError: the merge does not fit the models.
    """
    named = [
        {_name(path): leaf if isinstance(leaf, LazyLeaf) else InMemory(np.asarray(leaf)) for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, parents)
    ]
    merge.check(list(named[0]), len(parents))

    def leaf(path, facts: Axes, like: jax.ShapeDtypeStruct) -> LazyLeaf:
        return merge.leaf(_name(path), named, Own(facts, like.shape, like.dtype))

    return jax.tree_util.tree_map_with_path(leaf, axes, shapes)


def _name(path: tuple) -> str:
    return ".".join(str(entry.key) for entry in path)
