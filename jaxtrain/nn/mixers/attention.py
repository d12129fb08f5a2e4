"""Grouped-query attention with rotary embeddings, around the kernel of flash attention.

Vaswani et al. (2017), arXiv:1706.03762; grouped heads, Ainslie et al. (2023), arXiv:2305.13245; normalised queries and
keys, Dehghani et al. (2023), arXiv:2302.05442, over all heads together, OLMo 2 (2024), arXiv:2501.00656; logit soft
cap, Gemma 2 (2024), arXiv:2408.00118; sliding window, Beltagy et al. (2020), arXiv:2004.05150; sinks, gpt-oss (2025),
arXiv:2508.10925; ALiBi, Press et al. (2021), arXiv:2108.12409. Dropout of attention weights is left out: the models
that had it no longer train with it.
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
from jaxtrain.nn.param import constant
from jaxtrain.nn.rope import RopeConfig, rotate
from jaxtrain.ranges import COUNTED, check_at_least_one, check_positive_or_none
from jaxtrain.sharding import axis_size, constrain, index_on, on_each_device


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionConfig(MixerConfig):
    """Grouped-query attention with rotary embeddings.

    `scale` multiplies the scores, head_dim**-0.5 by default. `window` counts the keys that a query sees, with its own.
    `bias` is of all four linears, `output_bias` of the last one where it differs. `joint_qk_norm` takes the norm over
    all heads together. With `sinks` every head has a learned logit, which takes its share of the softmax and has no
    value. Without `causal` a query sees the keys ahead of it too, so nothing can be generated; a window then counts
    both ways. `alibi` lowers scores by the distance of the key, each head by a slope of its own.

    `implementation` names a kernel that is not yet the default of the device. It runs over whole sequences.
    """

    heads: int
    kv_heads: int
    head_dim: int
    rope: RopeConfig | None = RopeConfig()
    qk_norm: NormConfig | None = None
    joint_qk_norm: bool = False
    bias: bool = False
    output_bias: bool | None = None
    window: int | None = None
    softcap: float | None = None
    scale: float | None = None
    sinks: bool = False
    causal: bool = True
    alibi: bool = False
    implementation: str | None = None
    linear: LinearConfig = Dense()
    paper: ClassVar[str] = "arXiv:1706.03762"

    def __post_init__(self):
        check_at_least_one(self, "heads", "kv_heads", "head_dim")
        check_positive_or_none(self, "softcap", "scale")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads={self.kv_heads}: must divide heads={self.heads}")
        if self.rope and (rotated := self.rope.rotated(self.head_dim)) % 2 + (rotated == 0):
            raise ValueError(
                f"head_dim={self.head_dim}: rotary positions need an even one"
                if rotated == self.head_dim
                else f"rope.fraction={self.rope.fraction}: of head_dim={self.head_dim} it rotates {rotated} elements; "
                "choose one that rotates an even number, at least 2"
            )
        if self.rope:
            self.rope.frequencies(self.head_dim, length=1)  # raises for a scaling that does not fit the head
        if self.joint_qk_norm and not self.qk_norm:
            raise ValueError("joint_qk_norm=True: qk_norm says which norm; give it one")
        if self.alibi and self.implementation:
            raise ValueError(f"alibi=True: implementation={self.implementation!r} has no slopes; leave it out")
        if self.window is not None and not 1 <= self.window < COUNTED:
            raise ValueError(f"window={self.window}: must be from 1 to {COUNTED - 1}, or None for no window")
        check_named("flash_attention", IMPLEMENTATIONS, self.implementation)

    def build(self, d_model: int, *, rngs: nnx.Rngs) -> "Attention":
        return Attention(self, d_model, rngs=rngs)

    @property
    def has_output_bias(self) -> bool:
        return self.bias if self.output_bias is None else self.output_bias

    def mean_keys(self, length: int) -> float:
        """Return the mean number of keys that a query of a sequence of this length sees."""
        window = min(self.window or length, length)
        behind = window - window * (window - 1) / (2 * length)
        return behind if self.causal else 2 * behind - 1

    @property
    def slopes(self) -> tuple[float, ...] | None:
        """The slopes of the heads, Press et al. (2021), section 3: 2^-8/n, 2^-16/n, ... for n heads, a power of two.

        For another n they are those of the power below, and every second one of the power above.
        """
        if not self.alibi:
            return None
        below = 1 << (self.heads.bit_length() - 1)
        of_below, of_above = ([2.0 ** (-8 * i / n) for i in range(1, n + 1)] for n in (below, 2 * below))
        return tuple(of_below + of_above[::2][: self.heads - below])

    def check_decoding(self, first: int, last: int) -> None:
        if not self.causal:
            raise ValueError("causal=False: attention sees tokens ahead, so it generates nothing; take a causal model")
        rope, K = self.rope, self.head_dim
        if rope and (rope.frequencies(K, first) != rope.frequencies(K, last)).any():
            raise ValueError(
                f"rope.scaling={type(rope.scaling).__name__}: rows of {first} and of {last} tokens have different "
                "frequencies, so keys in the cache would be out of date as the row grows; keep prompt and "
                "continuation on one side of original_length, or ask for fewer tokens"
            )

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
        self.output = linears["output"].build(heads, width, bias=c.has_output_bias, rngs=rngs)
        if c.qk_norm:
            self.query_norm = c.qk_norm.build(c.head_dim * (c.heads if c.joint_qk_norm else 1))
            self.key_norm = c.qk_norm.build(c.head_dim * (c.kv_heads if c.joint_qk_norm else 1))
        self.sinks = constant(0.0, (c.heads,), ("heads",)) if c.sinks else None

    def initial_state(self, batch: int, length: int, dtype: jnp.dtype) -> KVCache:
        """Return an empty cache for `length` tokens."""
        shape = (batch, length, self.config.kv_heads, self.config.head_dim)
        return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext, state: KVCache | None = None) -> Out:
        """Attend. With a state, write the L new tokens to it at `context.cache_index` and attend to all cached ones."""
        c = self.config
        q_BLHK, k_BLJK, v_BLJK = self.query(x), self.key(x), self.value(x)
        if c.joint_qk_norm:
            q_BLHK, k_BLJK = over_heads(self.query_norm, q_BLHK), over_heads(self.key_norm, k_BLJK)
        elif c.qk_norm:
            q_BLHK, k_BLJK = self.query_norm(q_BLHK), self.key_norm(k_BLJK)
        if c.rope:
            row = context.key_positions.shape[1]
            q_BLHK = rotate(q_BLHK, context.positions, c.rope, length=row)
            k_BLJK = rotate(k_BLJK, context.positions, c.rope, length=row)
        q_BLHK = constrain(q_BLHK, "batch", "length", "heads", None)
        k_BLJK = constrain(k_BLJK, "batch", "length", "kv_heads", None)
        v_BLJK = constrain(v_BLJK, "batch", "length", "kv_heads", None)
        sinks = None if self.sinks is None else self.sinks[...]

        if state is None:
            if c.kv_heads % axis_size("heads"):  # the devices do not divide them: give every query head a copy
                k_BLJK, v_BLJK = (constrain(repeat(x, c), "batch", "length", "heads", None) for x in (k_BLJK, v_BLJK))
            y_BLHK = attend(q_BLHK, k_BLJK, v_BLJK, sinks, context, c)
        else:
            assert context.cache_index is not None, "a decoding state comes with a cache_index"
            start = (0, context.cache_index, 0, 0)
            state = KVCache(
                jax.lax.dynamic_update_slice(state.keys, k_BLJK.astype(state.keys.dtype), start),
                jax.lax.dynamic_update_slice(state.values, v_BLJK.astype(state.values.dtype), start),
            )
            y_BLHK = attend_to_cache(q_BLHK, state, sinks, context, c)
        y_BLHK = constrain(y_BLHK, "batch", "length", "heads", None)  # so that its gradient has this layout as well
        return Out(self.output(y_BLHK), state)


def over_heads(norm: Callable, x: Float[Array, "B L H K"]) -> Float[Array, "B L H K"]:
    return norm(x.reshape(*x.shape[:2], -1)).reshape(x.shape)


def repeat(x: Float[Array, "B L J K"], config: AttentionConfig) -> Float[Array, "B L H K"]:
    return jnp.repeat(x, config.heads // config.kv_heads, axis=2)


def attention_of(config: AttentionConfig) -> Callable[..., Float[Array, "B L H K"]]:
    """Return attention with the options of a configuration."""
    return functools.partial(  # type: ignore[return-value]  # a pair only with return_lse
        flash_attention,
        causal=config.causal,
        window=config.window,
        softcap=config.softcap,
        scale=config.scale,
        slopes=config.slopes,
    )


def attend(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L J K"],
    v: Float[Array, "B L J K"],
    sinks: Float[Array, " H"] | None,
    context: TokenContext,
    config: AttentionConfig,
) -> Float[Array, "B L H K"]:
    """Attend over whole sequences, in whose documents positions grow by one from token to token."""
    if config.implementation:
        return attend_by_kernel(q, k, v, sinks, context, config)
    # By default rows are taken one by one, for which they would be gathered from the devices they are split over.
    blocks = Blocks(rows=q.shape[0]) if axis_size("batch") > 1 else None
    return attention_of(config)(
        q, k, v, sinks=sinks, segment_ids=context.segment_ids, key_segment_ids=context.key_segment_ids, blocks=blocks
    )


def attend_by_kernel(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L J K"],
    v: Float[Array, "B L J K"],
    sinks: Float[Array, " H"] | None,
    context: TokenContext,
    config: AttentionConfig,
) -> Float[Array, "B L H K"]:
    """Attend by the implementation asked for. Every device has its own queries, and the keys of the whole length."""
    heads = "heads" if k.shape[2] == config.heads else "kv_heads"

    def attend_here(q, k, v, sinks, segment_ids, key_segment_ids):
        return attention_of(config)(
            q,
            k,
            v,
            sinks=sinks,
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
        (sinks, ("heads",)),
        (context.segment_ids, ("batch", "length")),
        (context.key_segment_ids, ("batch", None)),
    )


def attend_to_cache(
    q: Float[Array, "B L H K"],
    cache: KVCache,
    sinks: Float[Array, " H"] | None,
    context: TokenContext,
    config: AttentionConfig,
) -> Float[Array, "B L H K"]:
    """Attend to a cache, masked by positions. Padding between prompt and continuation has slots but no positions."""
    distance_BLS = context.positions[:, :, None] - context.key_positions[:, None, :]
    seen = (context.segment_ids[:, :, None] == context.key_segment_ids[:, None, :]) & (distance_BLS >= 0)
    seen = seen if config.window is None else seen & (distance_BLS < config.window)
    scores_BHLS = jnp.where(seen, 0.0, -jnp.inf)[:, None]
    if config.slopes:
        scores_BHLS = scores_BHLS - jnp.array(config.slopes)[None, :, None, None] * distance_BLS[:, None]
    options = {"sinks": sinks, "causal": False, "window": None, "slopes": None}
    return attention_of(config)(q, cache.keys, cache.values, bias=scores_BHLS, **options)
