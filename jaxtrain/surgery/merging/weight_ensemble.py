"""Weight-ensembling mixture of experts. Tang et al. (2024), arXiv:2402.00433.

The first parent is the base, from which each of the others was tuned for a task. The difference of their weights is the
vector of the task. Afterwards only the routers are trained, on text without targets: `objective=@Entropy()`.
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.weight_ensemble import WeightEnsembleConfig
from jaxtrain.surgery.lazy import Box, LazyLeaf
from jaxtrain.surgery.merging.base import Merge, Merged, Own, Parameters

BASE, OF_TASK = re.compile(r"\.mlp\.base\."), re.compile(r"\.mlp\.tasks\.(\d+)\.")


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightEnsemble(Merge):
    """Keeps the feed-forward layers of all tasks, mixed for each input by a router; adds up all other task vectors.

    These are the base plus `coefficient` times the sum of the task vectors (task arithmetic). So is the whole child, as
    long as its routers are not trained.
    """

    coefficient: float = 0.3
    paper: ClassVar[str] = "arXiv:2402.00433"

    def model(self, config: DecoderConfig, parents: int) -> DecoderConfig:
        if parents < 2:
            raise ValueError("merge=WeightEnsemble(): one parent; name the base, and a run tuned from it for each task")

        def mixed(block: BlockConfig) -> BlockConfig:
            layer = WeightEnsembleConfig(base=block.mlp, tasks=parents - 1, coefficient=self.coefficient)
            return block if block.mlp.absent else dataclasses.replace(block, mlp=layer)

        first, pattern = (tuple(map(mixed, blocks)) for blocks in (config.first, config.pattern))
        return dataclasses.replace(config, first=first, pattern=pattern)

    def leaf(self, name: str, parents: Sequence[Parameters], own: Own) -> LazyLeaf:
        base, *tuned = parents
        if name in base:
            return self._summed(base[name], [task[name] for task in tuned])
        if task := OF_TASK.search(name):
            theirs = OF_TASK.sub(".mlp.", name)
            return _difference(tuned[int(task[1])][theirs], base[theirs])
        if BASE.search(name):
            return base[BASE.sub(".mlp.", name)]
        value = self.coefficient if name.endswith(".router_bias") else 0.0
        return Merged(own.shape, own.dtype, lambda box: np.full(own.shape, value, own.dtype)[box])

    def _summed(self, base: LazyLeaf, tuned: list[LazyLeaf]) -> LazyLeaf:
        if not jnp.issubdtype(base.dtype, jnp.floating):
            return base

        def summed(box: Box) -> np.ndarray:
            start = base.read(box).astype(np.float32)
            total = start.copy()
            for task in tuned:
                total += np.float32(self.coefficient) * (task.read(box) - start)
            return total

        return Merged(base.shape, base.dtype, summed)


def _difference(tuned: LazyLeaf, base: LazyLeaf) -> LazyLeaf:
    def difference(box: Box) -> np.ndarray:
        return tuned.read(box).astype(np.float32) - base.read(box)

    return Merged(base.shape, base.dtype, difference)
