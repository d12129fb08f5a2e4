"""Clipping of each parameter's gradient by its root mean square. Shazeer and Stern (2018), arXiv:1804.04235, section 6.

They clip the update of Adafactor; here it is the gradient that an optimizer gets: g <- g / max(1, rms(g) / threshold).
The root mean square is that of one parameter of one layer, in a mixture of one expert.
"""

from dataclasses import dataclass
from typing import ClassVar

import optax

from jaxtrain.optim.base import Optimizer, with_grad_fn
from jaxtrain.optim.per_layer import per_layer
from jaxtrain.optim.wrapper import Wrapper
from jaxtrain.ranges import check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipByBlock(Wrapper):
    """Scales down the gradient of each parameter of each layer whose root mean square exceeds `threshold`."""

    optimizer: Optimizer
    threshold: float = 1.0
    paper: ClassVar[str] = "arXiv:1804.04235"

    def __post_init__(self):
        check_positive(self, "threshold")

    def build(self, rate: optax.Schedule, axes: dict) -> optax.GradientTransformation:
        clip = per_layer(optax.clip_by_block_rms(self.threshold), axes)

        def clipped(gradient: dict) -> dict:
            return clip.update(gradient, clip.init(gradient))[0]

        inner = with_grad_fn(self.optimizer.build(rate, axes), clipped)

        def update(gradient: dict, state: optax.OptState, params: dict | None = None, **extra) -> tuple:
            return inner.update(clipped(gradient), state, params, **extra)

        return optax.GradientTransformationExtraArgs(inner.init, update)
