"""Hash layers: Roller et al. (2021), arXiv:2106.04426, section 3 ("random hash").

The paper draws a table of the vocabulary once. Here a number is computed for each token and expert, which needs neither
a table nor a vocabulary. Its balanced hash, by the frequency of tokens, is left out.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from jaxtrain.nn.layer import TokenContext
from jaxtrain.nn.moe.routing import best, told
from jaxtrain.nn.moe.selections.base import Selection


@dataclass(frozen=True, kw_only=True, slots=True)
class Hash(Selection):
    """`top_k` experts that depend on the id of the token alone, at random over the vocabulary. Nothing is learned."""

    seed: int = 0
    paper: ClassVar[str] = "arXiv:2106.04426"

    def __post_init__(self):
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"seed={self.seed}: must be from 0 to 2^32 - 1")

    @property
    def takes_bias(self) -> bool:
        return False

    def __call__(self, scores: Float[Array, "B L E"], top_k: int, context: TokenContext) -> Float[Array, "B L E"]:
        tokens_BL1 = told(context.tokens, "tokens", self).astype(jnp.uint32)[..., None]
        experts_E = jnp.arange(scores.shape[-1], dtype=jnp.uint32)[None, None]
        drawn_BLE = _mixed(_mixed(_mixed(jnp.uint32(self.seed)) ^ tokens_BL1) ^ experts_E)
        return best((drawn_BLE >> 8).astype(jnp.float32), top_k)  # 24 bits, which a float32 holds


def _mixed(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Return a permutation of 32-bit integers in which each bit depends on all: the finalizer of MurmurHash3."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
