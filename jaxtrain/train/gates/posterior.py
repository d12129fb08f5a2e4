"""The posterior of the domain of a text. Li et al. (2022), "Branch-Train-Merge", arXiv:2208.03306, section 3.2.

By Bayes' rule the probability of a domain is in proportion to its prior times what its expert says of the tokens so
far. The paper finds the prior by a moving average over a validation text; here it is given, and uniform by default.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtrain.shapes import Batch
from jaxtrain.train.gates.base import Gate, up_to


@dataclass(frozen=True, kw_only=True, slots=True)
class Posterior(Gate):
    """The probability of each expert's domain, by what the experts said of the tokens of the document so far."""

    prior: tuple[float, ...] | None = None
    paper: ClassVar[str] = "arXiv:2208.03306"

    def __post_init__(self):
        if self.prior is not None and not (all(p > 0 for p in self.prior) and math.isclose(sum(self.prior), 1)):
            raise ValueError(f"prior={self.prior}: must be above 0 and add to 1, or None for a uniform one")

    def check(self, experts: int, tokenizer: str) -> None:
        if self.prior is not None and len(self.prior) != experts:
            raise ValueError(f"prior={self.prior}: there are {experts} experts; give one number for each")

    def log_weights(self, batch: Batch, log_probs: Float[Array, "M B L"]) -> Float[Array, "M B L"]:
        of_place = jnp.pad(log_probs, [(0, 0), (0, 0), (1, 0)])[..., :-1]  # what was said of the token there
        segments = jnp.pad(batch.segment_ids, [(0, 0), (1, 0)], constant_values=-1)
        goes_on = jnp.broadcast_to((segments[:, 1:] == segments[:, :-1])[None], log_probs.shape)
        evidence = up_to(jnp.where(goes_on, of_place, 0.0), batch.segment_ids)
        if self.prior is not None:
            evidence += jnp.log(jnp.array(self.prior))[:, None, None]
        return jax.nn.log_softmax(evidence, axis=0)
