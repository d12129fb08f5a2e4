"""Learning rates of their own, by depth and by name. Howard and Ruder (2018), arXiv:1801.06146, section 3.2.

Updates are multiplied by a factor, weight decay with them. `by_depth` is the rate of a layer over that of the layer
above: of L layers the last has the factor 1, the first by_depth^(L - 1), and tables that tokens are looked up in
by_depth^L. The paper's ratio is 1 / 2.6. `factors` are pairs of a pattern of names and a further factor; a parameter
has that of the first pattern that matches.
"""

import difflib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import jax
import numpy as np
import optax
from jax.tree_util import keystr, tree_leaves_with_path, tree_map_with_path

from jaxtrain.axes import Axes, Kind
from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.wrapper import Wrapper, check_takes_parts
from jaxtrain.ranges import check_positive

Layers = dict[tuple[str, str], np.ndarray]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRates(Wrapper):
    """Multiplies the learning rate by a factor for each layer, and for parameters by name."""

    optimizer: Optimizer
    by_depth: float = 1.0
    factors: tuple[tuple[str, float], ...] = ()
    paper: ClassVar[str] = "arXiv:1801.06146"

    def __post_init__(self):
        check_positive(self, "by_depth")
        for pattern, factor in self.factors:
            if not 0 <= factor < float("inf"):
                raise ValueError(f"factors: {pattern!r} has {factor}, which must be finite and at least 0")
        check_takes_parts(self.optimizer, "LayerRates")
        if self.optimizer.averages:
            name = type(self.optimizer).__name__
            raise ValueError(
                f"optimizer={name}: its average is found from whole updates; LayerRates takes parts of them"
            )

    @property
    def changes_decay(self) -> bool:
        return True

    def build(self, rate: optax.Schedule, axes: dict) -> optax.GradientTransformation:
        inner = optax.with_extra_args_support(self.optimizer.build(rate, axes))
        self._check(axes)

        def update(gradient: dict, state: optax.OptState, params: dict | None = None, **extra) -> tuple:
            updates, state = inner.update(gradient, state, params, **extra)
            layers = _layers(updates) if self.by_depth != 1 else {}

            def scaled(path: tuple, u: jax.Array, facts: Axes) -> jax.Array:
                return u * self._factor(path, facts, layers).astype(u.dtype)

            return tree_map_with_path(scaled, updates, axes), state

        return optax.GradientTransformationExtraArgs(inner.init, update)

    def _check(self, axes: dict) -> None:
        """Raise ValueError for a pattern that matches nothing, and for depths of what all layers share."""
        leaves = [(keystr(path, simple=True, separator="."), facts) for path, facts in tree_leaves_with_path(axes)]
        for pattern, _ in self.factors:
            if not any(fnmatchcase(name, pattern) for name, _ in leaves):
                near = difflib.get_close_matches(pattern, [name for name, _ in leaves], n=1, cutoff=0.0)
                raise ValueError(f"factors: {pattern!r} matches no parameter of the model, such as {near[0]}")
        shared = [name for name, facts in leaves if facts.shared]
        if shared and self.by_depth != 1:
            raise ValueError(f"by_depth={self.by_depth}: {shared[0]} is one for all layers; leave by_depth at 1")

    def _factor(self, path: tuple, facts: Axes, layers: Layers) -> np.ndarray | np.float32:
        """Return the factor of a parameter: a number, or `[repeats, 1, ...]` in a stack."""
        name = keystr(path, simple=True, separator=".")
        own = np.float32(next((factor for pattern, factor in self.factors if fnmatchcase(name, pattern)), 1.0))
        if self.by_depth == 1:
            return own
        total = sum(map(len, layers.values()))
        if facts.in_stack:
            above = total - 1 - layers[_block(name)]
            return own * np.float32(self.by_depth) ** above.reshape(-1, *(1,) * (len(facts.names) - 1))
        return own * np.float32(self.by_depth) ** (total if facts.kind is Kind.TABLE else 0)


def _block(name: str) -> tuple[str, str]:
    """Return the stack and the number of the block, of a name such as `stacks.blocks.blocks.0.mixer.query.kernel`."""
    _, stack, _, number, *_ = name.split(".")
    return stack, number


def _layers(params: dict) -> Layers:
    """Return the layers, counted from the embedding, that each block of a pattern is repeated in."""
    repeats = {
        _block(name): len(leaf)
        for path, leaf in tree_leaves_with_path(params)
        if (name := keystr(path, simple=True, separator=".")).startswith("stacks.")
    }
    layers: Layers = {}
    below = 0
    for stack in sorted({stack for stack, _ in repeats}, key=lambda stack: stack != "first"):
        blocks = sorted((block for block in repeats if block[0] == stack), key=lambda block: int(block[1]))
        for index, block in enumerate(blocks):
            layers[block] = below + index + len(blocks) * np.arange(repeats[block])
        below += len(blocks) * repeats[blocks[0]]
    return layers
