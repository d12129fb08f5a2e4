"""Weights by the distance of a context to the centres of the domains. Gururangan et al. (2023), arXiv:2303.14177.

A context is embedded as documents were (data/domains): the tokens of a document up to a place, counted, times their
inverse document frequencies, as a unit vector. A weight is in proportion to exp(-distance^2 / temperature).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxtrain.data.domains.file import DomainsFile
from jaxtrain.paths import FilePath
from jaxtrain.ranges import check_positive
from jaxtrain.shapes import Batch
from jaxtrain.train.gates.base import Gate, up_to


@dataclass(frozen=True, kw_only=True, slots=True)
class Nearest(Gate):
    """Weights by the distance of the document so far to each domain of the file `path`, of the `top_k` nearest."""

    path: FilePath
    temperature: float = 0.1
    top_k: int | None = None
    paper: ClassVar[str] = "arXiv:2303.14177"

    def __post_init__(self):
        check_positive(self, "temperature")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k}: must be at least 1, or None for all domains")

    def check(self, experts: int, tokenizer: str) -> None:
        domains = DomainsFile.read(Path(self.path))
        if domains.number != experts:
            raise ValueError(f"path={self.path!r}: it has {domains.number} domains, and there are {experts} experts")
        if domains.tokenizer != tokenizer:
            raise ValueError(f"path={self.path!r}: its domains are of other tokens than those of the experts")
        if self.top_k is not None and self.top_k > experts:
            raise ValueError(f"top_k={self.top_k}: there are {experts} experts")

    def log_weights(self, batch: Batch, log_probs: Float[Array, "M B L"]) -> Float[Array, "M B L"]:
        domains = DomainsFile.read(Path(self.path))
        frequency_W = jnp.asarray(domains.frequencies, jnp.float32)
        centres_MW = jnp.asarray(domains.centres, jnp.float32)
        frequency_BL = frequency_W[batch.tokens]
        products = up_to(frequency_BL[None] * centres_MW[:, batch.tokens], batch.segment_ids)
        again_BL = jax.lax.map(lambda row: _earlier(*row), (batch.tokens, batch.segment_ids))
        squares_BL = up_to(frequency_BL**2 * (2 * again_BL + 1), batch.segment_ids)  # (n + 1)^2 - n^2 = 2n + 1
        length_BL = jnp.where(squares_BL > 0, jnp.sqrt(squares_BL), 1.0)
        # |x|^2, which is the same for all domains, falls out.
        near = (
            2 * products / length_BL[None] - jnp.asarray(np.sum(domains.centres**2, axis=1), jnp.float32)[:, None, None]
        )
        if self.top_k is not None:
            # By their numbers and not by a comparison: compiled twice, `near` may be rounded in two ways.
            _, chosen_BLK = jax.lax.top_k(jnp.moveaxis(near, 0, -1), self.top_k)
            is_chosen = (chosen_BLK[None] == jnp.arange(len(near))[:, None, None, None]).any(axis=-1)
            near = jnp.where(is_chosen, near, -jnp.inf)
        return jax.nn.log_softmax(near / self.temperature, axis=0)


def _earlier(tokens: Int[Array, " L"], segment_ids: Int[Array, " L"]) -> Float[Array, " L"]:
    """Return how often each token of a row has occurred before in its document."""
    same = (tokens[:, None] == tokens[None]) & (segment_ids[:, None] == segment_ids[None])
    return jnp.sum(jnp.tril(same, -1), axis=1).astype(jnp.float32)
