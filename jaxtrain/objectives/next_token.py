"""Next-token cross-entropy, with the z-loss of PaLM (Chowdhery et al., 2022, arXiv:2204.02311, section 5)."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp

from jaxtrain.nn.layer import Keys
from jaxtrain.objectives.base import Model, Objective, Sums, Terms
from jaxtrain.shapes import Batch


@dataclass(frozen=True, kw_only=True, slots=True)
class NextToken(Objective):
    """The mean over loss tokens of -log p(target) + z_loss * log(Z)^2, float32, in nats."""

    z_loss: float = 0.0
    reads_teacher: ClassVar[bool] = False
    paper: ClassVar[str] = "arXiv:2204.02311"

    def __post_init__(self):
        if self.z_loss < 0:
            raise ValueError(f"z_loss={self.z_loss}: must not be negative")

    def weights(self, batch: Batch) -> Sums:
        return dict.fromkeys(("nll", "z_loss"), jnp.sum(batch.weights))

    def __call__(self, model: Model, batch: Batch, keys: Keys | None) -> Terms:
        nll_BL, log_z_BL = model.head.cross_entropy(model.hidden(batch, keys).y, batch.targets)
        nll = jnp.sum(nll_BL * batch.weights)
        if not self.z_loss:
            return Terms({"nll": nll}, {})
        z_loss = self.z_loss * jnp.sum(jnp.square(log_z_BL) * batch.weights)
        return Terms({"nll": nll, "z_loss": z_loss}, {})
