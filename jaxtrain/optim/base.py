"""What optimizers share: which parameters are matrices, and what evaluation runs on."""

from typing import ClassVar

import jax
import optax

VECTOR_AXES = (("width",), ("mlp",), ("kv_heads",), ("heads", "head_dim"), ("kv_heads", "head_dim"))


def is_matrix(names: tuple[str | None, ...]) -> bool:
    """Tell a weight matrix from a norm scale or a bias by its axis names."""
    return tuple(name for name in names if name != "layers") not in VECTOR_AXES


def matrices(names: dict) -> dict:
    """Return a tree of booleans: which parameters are matrices."""
    return jax.tree.map(is_matrix, names, is_leaf=lambda x: isinstance(x, tuple))


class BaseOptimizer:
    """What optimizers share. `averages`: evaluation needs the optimizer's state, not the parameters alone."""

    __slots__ = ()
    averages: ClassVar[bool] = False

    def evaluation_params(self, opt_state: optax.OptState, params: dict) -> dict:
        """Return the parameters to evaluate, sample and export with."""
        return params
