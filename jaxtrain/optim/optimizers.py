"""Optimizers from optax, as configurations.

Weight decay is decoupled and falls on matrices alone, found by the logical names of their axes: stacked norm scales
and biases have two dimensions but are still vectors.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import optax

from jaxtrain.optim.adamw_8bit import AdamW8bit
from jaxtrain.optim.base import BaseOptimizer, is_matrix, matrices
from jaxtrain.optim.schedules import Schedule
from jaxtrain.ranges import check_decay, check_not_negative, check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamW(BaseOptimizer):
    """Loshchilov and Hutter (2019), arXiv:1711.05101."""

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1

    def __post_init__(self):
        check_decay(self, "b1", "b2")
        check_positive(self, "epsilon")
        check_not_negative(self, "weight_decay")

    def build(self, rate: optax.Schedule, names: dict) -> optax.GradientTransformation:
        return optax.adamw(
            rate, b1=self.b1, b2=self.b2, eps=self.epsilon, weight_decay=self.weight_decay, mask=matrices(names)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Lion(BaseOptimizer):
    """The sign of an interpolated momentum. Chen et al. (2023), arXiv:2302.06675."""

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 1.0

    def __post_init__(self):
        check_decay(self, "b1", "b2")
        check_not_negative(self, "weight_decay")

    def build(self, rate: optax.Schedule, names: dict) -> optax.GradientTransformation:
        return optax.lion(rate, b1=self.b1, b2=self.b2, weight_decay=self.weight_decay, mask=matrices(names))


@dataclass(frozen=True, kw_only=True, slots=True)
class Adafactor(BaseOptimizer):
    """Second moments factored into rows and columns. Shazeer and Stern (2018), arXiv:1804.04235."""

    learning_rate: Schedule
    decay_rate: float = 0.8
    clipping_threshold: float = 1.0
    weight_decay: float = 0.0

    def __post_init__(self):
        check_positive(self, "decay_rate", "clipping_threshold")
        check_not_negative(self, "weight_decay")

    def build(self, rate: optax.Schedule, names: dict) -> optax.GradientTransformation:
        factored = optax.adafactor(
            rate, decay_rate=self.decay_rate, clipping_threshold=self.clipping_threshold, weight_decay_rate=None
        )
        # The decay that optax offers here is not multiplied by the learning rate; that of the others is.
        decay = optax.add_decayed_weights(lambda count: -self.weight_decay * rate(count), mask=matrices(names))
        return optax.chain(factored, decay)


@dataclass(frozen=True, kw_only=True, slots=True)
class Muon(BaseOptimizer):
    """Orthogonalised momentum on the matrices of the blocks, Adam without decay on everything else.

    Jordan et al. (2024), kellerjordan.github.io/posts/muon; update scaled to AdamW's size as in Liu et al. (2025),
    arXiv:2502.16982, so that one learning rate and weight decay serve both.
    """

    learning_rate: Schedule
    momentum: float = 0.95
    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 0.1

    def __post_init__(self):
        check_decay(self, "momentum", "b1", "b2")
        check_not_negative(self, "weight_decay")

    def build(self, rate: optax.Schedule, names: dict) -> optax.GradientTransformation:
        return optax.contrib.muon(
            rate,
            beta=self.momentum,
            adam_b1=self.b1,
            adam_b2=self.b2,
            weight_decay=self.weight_decay,
            weight_decay_mask=matrices(names),
            consistent_rms=0.2,
            muon_weight_dimension_numbers=jax.tree.map(muon_dimensions, names, is_leaf=lambda x: isinstance(x, tuple)),
        )


def muon_dimensions(names: tuple[str | None, ...]) -> optax.contrib.MuonDimensionNumbers | None:
    """Return which axes are rows and which columns of a block's matrix; None for what Muon does not touch."""
    if names[0] != "layers" or not is_matrix(names) or "embed" not in names:
        return None
    width = names.index("embed")
    others = tuple(i for i in range(1, len(names)) if i != width)
    rows, columns = ((width,), others) if width < others[0] else (others, (width,))
    return optax.contrib.MuonDimensionNumbers(reduction_axis=rows, output_axis=columns)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleFree(BaseOptimizer):
    """AdamW that averages instead of decaying. Defazio et al. (2024), arXiv:2405.15682.

    Gradients are taken at the interpolated point; evaluation, samples and exports use the average. Its learning rate
    wants no decay: give it `Constant` with a warm-up.
    """

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    averages: ClassVar[bool] = True

    def __post_init__(self):
        check_decay(self, "b1", "b2")
        check_positive(self, "b1", "epsilon")  # the average is found by dividing by b1
        check_not_negative(self, "weight_decay")

    def build(self, rate: optax.Schedule, names: dict) -> optax.GradientTransformation:
        base = optax.chain(  # AdamW without its first moment, for which the interpolation stands
            optax.scale_by_rms(decay=self.b2, eps=self.epsilon, eps_in_sqrt=False, bias_correction=True),
            optax.add_decayed_weights(self.weight_decay, mask=matrices(names)),
            optax.scale_by_learning_rate(rate),
        )
        return optax.contrib.schedule_free(base, learning_rate=rate, b1=self.b1)

    def evaluation_params(self, opt_state: optax.OptState, params: dict) -> dict:
        return optax.contrib.schedule_free_eval_params(opt_state, params)


Optimizer = AdamW | AdamW8bit | Lion | Adafactor | Muon | ScheduleFree


def transformation(
    optimizer: Optimizer, rate: optax.Schedule, names: dict, *, clip_norm: float | None
) -> optax.GradientTransformation:
    """Return the optimizer behind clipping by the gradient's global norm (Pascanu et al., 2013, arXiv:1211.5063)."""
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    return optax.chain(clip, optimizer.build(rate, names))


def evaluation_params(optimizer: Optimizer, opt_state: optax.OptState, params: dict) -> dict:
    """Return the parameters to evaluate with, from the state of `transformation`."""
    return optimizer.evaluation_params(opt_state[1], params)
