"""Hash layers: Roller et al. (2021), arXiv:2106.04426, section 3 ("random hash" and "balanced hash").

The paper draws a table of the vocabulary once. Here a number is computed for each token and expert, which needs neither
a table nor a vocabulary. For the balanced hash, the most frequent tokens are given, and have a table; few words make up
most of a text, so the others may stay at random.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from jaxtrain.nn.layer import TokenContext
from jaxtrain.nn.moe.routing import best, told
from jaxtrain.nn.moe.selections.base import Selection


@dataclass(frozen=True, kw_only=True, slots=True)
class Hash(Selection):
    """`top_k` experts that depend on the id of the token alone, at random over the vocabulary. Nothing is learned.

    `counts` are pairs of a token and its frequency. From the most frequent one on, each of them takes the experts with
    the least load so far, so that all have as many tokens.
    """

    seed: int = 0
    counts: tuple[tuple[int, int], ...] = ()
    paper: ClassVar[str] = "arXiv:2106.04426"

    def __post_init__(self):
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"seed={self.seed}: must be from 0 to 2^32 - 1")
        for number, (token, count) in enumerate(self.counts):
            if token < 0 or count < 1:
                raise ValueError(
                    f"counts[{number}]=({token}, {count}): give a token, and how often it comes, at least 1"
                )
        if len({token for token, _ in self.counts}) < len(self.counts):
            raise ValueError(f"counts: {len(self.counts)} pairs, in which a token comes twice; give each once")

    @property
    def reads_scores(self) -> bool:
        return False

    def __call__(self, scores: Float[Array, "B L E"], top_k: int, context: TokenContext) -> Float[Array, "B L E"]:
        tokens_BL, experts = told(context.tokens, "tokens", self), scores.shape[-1]
        numbers_E = jnp.arange(experts, dtype=jnp.uint32)[None, None]
        drawn_BLE = _mixed(_mixed(_mixed(jnp.uint32(self.seed)) ^ tokens_BL.astype(jnp.uint32)[..., None]) ^ numbers_E)
        random_BLE = best((drawn_BLE >> 8).astype(jnp.float32), top_k)  # 24 bits, which a float32 holds
        if not self.counts:
            return random_BLE
        table_TK = jnp.asarray(_balanced(self.counts, experts, top_k))
        balanced_BLE = jnp.sum(jax.nn.one_hot(table_TK.at[tokens_BL].get(mode="fill", fill_value=-1), experts), axis=-2)
        return jnp.where(jnp.any(balanced_BLE > 0, axis=-1, keepdims=True), balanced_BLE, random_BLE)


@functools.lru_cache(maxsize=16)
def _balanced(counts: tuple[tuple[int, int], ...], experts: int, top_k: int) -> Int[np.ndarray, "T K"]:
    """Return the experts of each token up to the greatest that is counted, and -1 for those that are not."""
    table_TK = np.full((1 + max(token for token, _ in counts), top_k), -1, np.int32)
    load_E = np.zeros(experts)
    for token, count in sorted(counts, key=lambda pair: (-pair[1], pair[0])):
        table_TK[token] = np.argsort(load_E, kind="stable")[:top_k]
        load_E[table_TK[token]] += count
    return table_TK


def _mixed(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Return a permutation of 32-bit integers in which each bit depends on all: the finalizer of MurmurHash3."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
