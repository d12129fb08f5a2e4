"""Grouped-query attention with rotary embeddings, around the kernel of flash attention.

Vaswani et al. (2017), arXiv:1706.03762; grouped heads, Ainslie et al. (2023), arXiv:2305.13245; normalised queries and
keys, Dehghani et al. (2023), arXiv:2302.05442; logit soft cap, Gemma 2 (2024), arXiv:2408.00118; sliding window,
Beltagy et al. (2020), arXiv:2004.05150. Dropout of attention weights is left out: the models that had it no longer
train with it.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtrain_kernels.choice import check_named
from jaxtrain_kernels.flash_attention import IMPLEMENTATIONS, Blocks, flash_attention
from jaxtyping import Array, Float

from jaxtrain.nn.layer import Out, TokenContext
from jaxtrain.nn.linear.base import LinearConfig
from jaxtrain.nn.linear.dense import Dense
from jaxtrain.nn.mixers.base import Mixer, MixerConfig
from jaxtrain.nn.norms.base import NormConfig
from jaxtrain.nn.rope import RopeConfig, rotate
from jaxtrain.ranges import COUNTED, check_at_least_one, check_positive_or_none
from jaxtrain.sharding import axis_size, constrain, index_on, on_each_device


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionConfig(MixerConfig):
    """Grouped-query attention with rotary embeddings.

    `scale` multiplies the scores, head_dim**-0.5 by default. `window` counts the keys that a query sees, with its own.

    `implementation` names a kernel that is not yet the default of the device. It runs over whole sequences.
    """

    heads: int
    kv_heads: int
    head_dim: int
    rope: RopeConfig | None = RopeConfig()
    qk_norm: NormConfig | None = None
    bias: bool = False
    window: int | None = None
    softcap: float | None = None
    scale: float | None = None
    implementation: str | None = None
    linear: LinearConfig = Dense()
    paper: ClassVar[str] = "arXiv:1706.03762"

    def __post_init__(self):
        check_at_least_one(self, "heads", "kv_heads", "head_dim")
        check_positive_or_none(self, "softcap", "scale")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads={self.kv_heads}: must divide heads={self.heads}")
        if self.rope and self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim}: rotary positions need an even one")
        if self.window is not None and not 1 <= self.window < COUNTED:
            raise ValueError(f"window={self.window}: must be from 1 to {COUNTED - 1}, or None for no window")
        check_named("flash_attention", IMPLEMENTATIONS, self.implementation)

    def build(self, d_model: int, *, rngs: nnx.Rngs) -> "Attention":
        return Attention(self, d_model, rngs=rngs)

    def mean_keys(self, length: int) -> float:
        """Return the mean number of keys that a query of a sequence of this length sees."""
        window = min(self.window or length, length)
        return window - window * (window - 1) / (2 * length)

    def mixing_flops(self, length: int) -> float:
        """Return the FLOPs of a token's scores and sums of values, forward and backward."""
        return 12.0 * self.heads * self.head_dim * self.mean_keys(length)


class KVCache(NamedTuple):
    keys: Float[Array, "B S J K"]
    values: Float[Array, "B S J K"]


class Attention(Mixer):
    def __init__(self, config: AttentionConfig, d_model: int, *, rngs: nnx.Rngs):
        self.config = c = config
        width, channels = ((d_model, "embed"),), (c.head_dim, "head_dim")
        heads, kv_heads = ((c.heads, "heads"), channels), ((c.kv_heads, "kv_heads"), channels)
        linears = c.linear.of_layer("query", "key", "value", "output")
        self.query = linears["query"].build(width, heads, bias=c.bias, rngs=rngs)
        self.key = linears["key"].build(width, kv_heads, bias=c.bias, rngs=rngs)
        self.value = linears["value"].build(width, kv_heads, bias=c.bias, rngs=rngs)
        self.output = linears["output"].build(heads, width, bias=c.bias, rngs=rngs)
        if c.qk_norm:
            self.query_norm = c.qk_norm.build(c.head_dim)
            self.key_norm = c.qk_norm.build(c.head_dim)

    def initial_state(self, batch: int, length: int, dtype: jnp.dtype) -> KVCache:
        """Return an empty cache for `length` tokens."""
        shape = (batch, length, self.config.kv_heads, self.config.head_dim)
        return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext, state: KVCache | None = None) -> Out:
        """Attend. With a state, write the L new tokens to it at `context.cache_index` and attend to all cached ones."""
        c = self.config
        q_BLHK, k_BLJK, v_BLJK = self.query(x), self.key(x), self.value(x)
        if c.qk_norm:
            q_BLHK, k_BLJK = self.query_norm(q_BLHK), self.key_norm(k_BLJK)
        if c.rope:
            q_BLHK = rotate(q_BLHK, context.positions, c.rope)
            k_BLJK = rotate(k_BLJK, context.positions, c.rope)
        q_BLHK = constrain(q_BLHK, "batch", "length", "heads", None)
        k_BLJK = constrain(k_BLJK, "batch", "length", "kv_heads", None)
        v_BLJK = constrain(v_BLJK, "batch", "length", "kv_heads", None)

        if state is None:
            if c.kv_heads % axis_size("heads"):  # the devices do not divide them: give every query head a copy
                k_BLJK, v_BLJK = (constrain(repeat(x, c), "batch", "length", "heads", None) for x in (k_BLJK, v_BLJK))
            y_BLHK = attend(q_BLHK, k_BLJK, v_BLJK, context, c)
        else:
            assert context.cache_index is not None, "a decoding state comes with a cache_index"
            start = (0, context.cache_index, 0, 0)
            state = KVCache(
                jax.lax.dynamic_update_slice(state.keys, k_BLJK.astype(state.keys.dtype), start),
                jax.lax.dynamic_update_slice(state.values, v_BLJK.astype(state.values.dtype), start),
            )
            y_BLHK = attend_to_cache(q_BLHK, state, context, c)
        y_BLHK = constrain(y_BLHK, "batch", "length", "heads", None)  # so that its gradient has this layout as well
        return Out(self.output(y_BLHK), state)


def repeat(x: Float[Array, "B L J K"], config: AttentionConfig) -> Float[Array, "B L H K"]:
    return jnp.repeat(x, config.heads // config.kv_heads, axis=2)


def attention_of(config: AttentionConfig) -> Callable[..., Float[Array, "B L H K"]]:
    """Return attention with the window, the soft cap and the scale of a configuration."""
    return functools.partial(  # type: ignore[return-value]  # a pair only with return_lse
        flash_attention, window=config.window, softcap=config.softcap, scale=config.scale
    )


def attend(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L J K"],
    v: Float[Array, "B L J K"],
    context: TokenContext,
    config: AttentionConfig,
) -> Float[Array, "B L H K"]:
    """Attend over whole sequences, in whose documents positions grow by one from token to token."""
    if config.implementation:
        return attend_by_kernel(q, k, v, context, config)
    # By default rows are taken one by one, for which they would be gathered from the devices they are split over.
    blocks = Blocks(rows=q.shape[0]) if axis_size("batch") > 1 else None
    return attention_of(config)(
        q, k, v, segment_ids=context.segment_ids, key_segment_ids=context.key_segment_ids, blocks=blocks
    )


def attend_by_kernel(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L J K"],
    v: Float[Array, "B L J K"],
    context: TokenContext,
    config: AttentionConfig,
) -> Float[Array, "B L H K"]:
    """Attend by the implementation asked for. Every device has its own queries, and the keys of the whole length."""
    heads = "heads" if k.shape[2] == config.heads else "kv_heads"

    def attend_here(q, k, v, segment_ids, key_segment_ids):
        return attention_of(config)(
            q,
            k,
            v,
            segment_ids=segment_ids,
            key_segment_ids=key_segment_ids,
            offset=index_on("length") * q.shape[1],
            implementation=config.implementation,
        )

    return on_each_device(
        attend_here,
        (q, ("batch", "length", "heads", None)),
        (k, ("batch", None, heads, None)),
        (v, ("batch", None, heads, None)),
        (context.segment_ids, ("batch", "length")),
        (context.key_segment_ids, ("batch", None)),
    )


def attend_to_cache(
    q: Float[Array, "B L H K"], cache: KVCache, context: TokenContext, config: AttentionConfig
) -> Float[Array, "B L H K"]:
    """Attend to a cache, masked by positions. Padding between prompt and continuation has slots but no positions."""
    distance_BLS = context.positions[:, :, None] - context.key_positions[:, None, :]
    seen = (context.segment_ids[:, :, None] == context.key_segment_ids[:, None, :]) & (distance_BLS >= 0)
    seen = seen if config.window is None else seen & (distance_BLS < config.window)
    bias = jnp.where(seen, 0.0, -jnp.inf)[:, None]
    return attention_of(config)(q, cache.keys, cache.values, bias=bias, causal=False, window=None)
