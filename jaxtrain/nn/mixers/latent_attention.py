"""Multi-head latent attention: DeepSeek-V2 (2024), arXiv:2405.04434, section 2.1.

Keys and values of all heads are made of one latent vector a token, and one rotated key is shared by all heads. Decoding
keeps these two alone.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtrain_kernels.flash_attention import Blocks, flash_attention
from jaxtyping import Array, Float

from jaxtrain.nn.layer import Out, TokenContext
from jaxtrain.nn.linear.base import LinearConfig
from jaxtrain.nn.linear.dense import Dense
from jaxtrain.nn.mixers.base import Keep, Mixer, MixerConfig
from jaxtrain.nn.norms.base import NormConfig
from jaxtrain.nn.norms.rms_norm import RMSNormConfig
from jaxtrain.nn.positions.base import Positions
from jaxtrain.nn.positions.interleaved_rotary import InterleavedRotary
from jaxtrain.ranges import check_at_least_one, check_positive_or_none
from jaxtrain.sharding import axis_size, constrain


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentAttentionConfig(MixerConfig):
    """Causal attention over keys and values made of `latent` numbers a token.

    A query has `head_dim` elements without positions and `rotated_dim` with them; values have `value_dim`. With
    `query_latent` queries are made of a latent vector, too. `scale` is (head_dim + rotated_dim)^-0.5 by default.
    """

    heads: int
    latent: int
    head_dim: int
    rotated_dim: int
    value_dim: int
    query_latent: int | None = None
    positions: Positions = InterleavedRotary()
    norm: NormConfig = RMSNormConfig()
    scale: float | None = None
    linear: LinearConfig = Dense()
    paper: ClassVar[str] = "arXiv:2405.04434"

    def __post_init__(self):
        check_at_least_one(self, "heads", "latent", "head_dim", "rotated_dim", "value_dim")
        check_positive_or_none(self, "scale")
        if self.query_latent is not None:
            check_at_least_one(self, "query_latent")
        if self.positions.slopes(self.heads):
            raise ValueError(
                f"positions={self.positions!r}: latent attention rotates a part of each head; take a Rotary"
            )
        self.positions.check(self.rotated_dim)

    def build(self, d_model: int, *, rngs: nnx.Rngs) -> "LatentAttention":
        return LatentAttention(self, d_model, rngs=rngs)

    def check_decoding(self, first: int, last: int) -> None:
        self.positions.check_decoding(self.rotated_dim, first, last)

    def check_gaps(self) -> None:
        """Any token can be left out."""

    def mixing_flops(self, length: int) -> float:
        """Return the FLOPs of a token's scores and sums of values, forward and backward."""
        return 6.0 * self.heads * (self.head_dim + self.rotated_dim + self.value_dim) * (length + 1) / 2


class LatentCache(NamedTuple):
    latents: Float[Array, "B S C"]
    rotated_keys: Float[Array, "B S 1 K"]


class LatentAttention(Mixer):
    def __init__(self, config: LatentAttentionConfig, d_model: int, *, rngs: nnx.Rngs):
        self.config = c = config
        width = ((d_model, "embed"),)
        linears = c.linear.of_layer("query_down", "query", "down", "rotated_key", "key", "value", "output")

        def heads(size: int) -> tuple[tuple[int, str], ...]:
            return (c.heads, "heads"), (size, "head_dim")

        queries = width
        if c.query_latent:
            queries = ((c.query_latent, "latent"),)
            self.query_down = linears["query_down"].build(width, ((c.query_latent, "rank"),), rngs=rngs)
            self.query_norm = c.norm.build(c.query_latent)
        self.query = linears["query"].build(queries, heads(c.head_dim + c.rotated_dim), rngs=rngs)
        self.down = linears["down"].build(width, ((c.latent, "rank"),), rngs=rngs)
        self.latent_norm = c.norm.build(c.latent)
        self.rotated_key = linears["rotated_key"].build(width, ((c.rotated_dim, "rank"),), rngs=rngs)
        latent = ((c.latent, "latent"),)
        self.key = linears["key"].build(latent, heads(c.head_dim), rngs=rngs)
        self.value = linears["value"].build(latent, heads(c.value_dim), rngs=rngs)
        self.output = linears["output"].build(heads(c.value_dim), width, rngs=rngs)

    def initial_state(self, batch: int, length: int, dtype: jnp.dtype) -> LatentCache:
        """Return an empty cache for `length` tokens."""
        c = self.config
        return LatentCache(
            jnp.zeros((batch, length, c.latent), dtype), jnp.zeros((batch, length, 1, c.rotated_dim), dtype)
        )

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext, state: LatentCache | Keep | None = None) -> Out:
        """Attend. With a state, write the L new tokens to it at `context.cache_index` and attend to all cached ones."""
        c, row = self.config, context.key_positions.shape[1]
        q_BLHK = self.query(self.query_norm(self.query_down(x)) if c.query_latent else x)
        rotated_q = c.positions.rotate(q_BLHK[..., c.head_dim :], context.positions, length=row)
        q_BLHK = jnp.concatenate((q_BLHK[..., : c.head_dim], rotated_q), axis=-1)
        latent_BLC = self.latent_norm(self.down(x))
        rotated_k = c.positions.rotate(self.rotated_key(x)[:, :, None], context.positions, length=row)
        whole_rows = state is None or state is Keep.KEYS
        if state is Keep.KEYS:
            state = LatentCache(latent_BLC, rotated_k)
        elif state is not None:
            if context.cache_index is not None:
                state = LatentCache(*map(_written, state, (latent_BLC, rotated_k), (context.cache_index,) * 2))
            latent_BLC, rotated_k = (part.astype(x.dtype) for part in state)
        k_BSHK, v_BSHV = self._keys_and_values(latent_BLC, rotated_k)
        q_BLHK = constrain(q_BLHK, "batch", "length", "heads", None)
        if whole_rows:
            blocks = Blocks(rows=x.shape[0]) if axis_size("batch") > 1 else None
            documents = {"segment_ids": context.segment_ids, "key_segment_ids": context.key_segment_ids}
            y_BLHV = self._attend(q_BLHK, k_BSHK, v_BSHV, **documents, blocks=blocks)
        else:
            ahead_BLS = context.positions[:, :, None] < context.key_positions[:, None, :]
            other_BLS = context.segment_ids[:, :, None] != context.key_segment_ids[:, None, :]
            bias_BHLS = jnp.where(ahead_BLS | other_BLS, -jnp.inf, 0.0)[:, None]
            y_BLHV = self._attend(q_BLHK, k_BSHK, v_BSHV, causal=False, bias=bias_BHLS)
        return Out(self.output(constrain(y_BLHV, "batch", "length", "heads", None)), state)

    def _attend(self, *inputs: jax.Array, **options: Any) -> jax.Array:
        return flash_attention(*inputs, scale=self.config.scale, **options)  # type: ignore[return-value]  # without lse

    def _keys_and_values(self, latent: Float[Array, "B S C"], rotated: Float[Array, "B S 1 K"]) -> tuple:
        k_BSHK, v_BSHV = self.key(latent), self.value(latent)
        shared = jnp.broadcast_to(rotated, (*k_BSHK.shape[:3], rotated.shape[-1]))
        k_BSHK = jnp.concatenate((k_BSHK, shared), axis=-1)
        return tuple(constrain(part, "batch", "length", "heads", None) for part in (k_BSHK, v_BSHV))


def _written(cache: jax.Array, new: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice(cache, new.astype(cache.dtype), (0, index) + (0,) * (cache.ndim - 2))
