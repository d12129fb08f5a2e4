"""Grouped-query attention, around the kernel of flash attention.

Vaswani et al. (2017), arXiv:1706.03762; grouped heads, Ainslie et al. (2023), arXiv:2305.13245. Positions, masks, and
norms of queries and keys are classes of their own. Dropout of attention weights is left out: the models that had it no
longer train with it.
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
from jaxtrain.nn.masks.base import Mask
from jaxtrain.nn.masks.causal import Causal
from jaxtrain.nn.mixers.base import Keep, Mixer, MixerConfig
from jaxtrain.nn.mixers.scores import Scores
from jaxtrain.nn.param import constant
from jaxtrain.nn.positions.base import Positions
from jaxtrain.nn.positions.rotary import Rotary
from jaxtrain.nn.qk_norms.base import QKNorm
from jaxtrain.ranges import check_at_least_one
from jaxtrain.sharding import axis_size, constrain, index_on, on_each_device

LINEARS = ("query", "key", "value", "output")


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionConfig(MixerConfig):
    """Grouped-query attention, by default causal and with rotary embeddings.

    `biases` are the linears that have a bias, of query, key, value and output. `scores` is None for the usual scale.

    `implementation` names a kernel that is not yet the default of the device. It runs over whole sequences.
    """

    heads: int
    kv_heads: int
    head_dim: int
    positions: Positions = Rotary()
    mask: Mask = Causal()
    qk_norm: QKNorm | None = None
    scores: Scores | None = None
    biases: tuple[str, ...] = ()
    implementation: str | None = None
    linear: LinearConfig = Dense()
    paper: ClassVar[str] = "arXiv:1706.03762"
    neutral: ClassVar[tuple[str, ...]] = ("implementation",)

    def __post_init__(self):
        check_at_least_one(self, "heads", "kv_heads", "head_dim")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads={self.kv_heads}: must divide heads={self.heads}")
        if self.biases != tuple(name for name in LINEARS if name in self.biases):
            raise ValueError(f"biases={self.biases}: must name linears of {LINEARS}, in this order")
        self.positions.check(self.head_dim)
        check_named("flash_attention", IMPLEMENTATIONS, self.implementation)
        if self.implementation and self.positions.slopes(self.heads):
            raise ValueError(
                f"positions={self.positions!r}: implementation={self.implementation!r} has no slopes; leave it out"
            )
        if self.implementation and self.mask.has_holes:
            raise ValueError(
                f"mask={self.mask!r}: implementation={self.implementation!r} sees all keys of a span; leave it out"
            )

    def build(self, d_model: int, *, rngs: nnx.Rngs) -> "Attention":
        return Attention(self, d_model, rngs=rngs)

    @property
    def causal(self) -> bool:
        return self.mask.span.causal

    def check_decoding(self, first: int, last: int) -> None:
        if not self.causal:
            raise ValueError(
                f"mask={self.mask!r}: attention sees tokens ahead, so it generates nothing; take a causal model"
            )
        self.positions.check_decoding(self.head_dim, first, last)

    def check_gaps(self) -> None:
        if self.mask.span.window is not None or self.mask.has_holes:
            raise ValueError(f"mask={self.mask!r}: it counts places, so no token can be left out (depth); take Causal")
        if self.positions.slopes(self.heads):
            raise ValueError(
                f"positions={self.positions!r}: slopes count places, so no token can be left out (depth); take Rotary"
            )

    def mixing_flops(self, length: int) -> float:
        """Return the FLOPs of a token's scores and sums of values, forward and backward."""
        return 12.0 * self.heads * self.head_dim * self.mask.mean_keys(length)


class KVCache(NamedTuple):
    keys: Float[Array, "B S J K"]
    values: Float[Array, "B S J K"]


class Attention(Mixer):
    def __init__(self, config: AttentionConfig, d_model: int, *, rngs: nnx.Rngs):
        self.config = c = config
        width, channels = ((d_model, "embed"),), (c.head_dim, "head_dim")
        heads, kv_heads = ((c.heads, "heads"), channels), ((c.kv_heads, "kv_heads"), channels)
        linears = c.linear.of_layer("query", "key", "value", "output")
        self.query = linears["query"].build(width, heads, bias="query" in c.biases, rngs=rngs)
        self.key = linears["key"].build(width, kv_heads, bias="key" in c.biases, rngs=rngs)
        self.value = linears["value"].build(width, kv_heads, bias="value" in c.biases, rngs=rngs)
        self.output = linears["output"].build(heads, width, bias="output" in c.biases, rngs=rngs)
        if c.qk_norm:
            self.query_norm = c.qk_norm.build(c.heads, c.head_dim)
            self.key_norm = c.qk_norm.build(c.kv_heads, c.head_dim)
        self.sinks = constant(0.0, (c.heads,), ("heads",)) if c.scores and c.scores.sinks else None

    def initial_state(self, batch: int, length: int, dtype: jnp.dtype) -> KVCache:
        """Return an empty cache for `length` tokens."""
        shape = (batch, length, self.config.kv_heads, self.config.head_dim)
        return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext, state: KVCache | Keep | None = None) -> Out:
        """Attend. With a state, write the L new tokens to it at `context.cache_index` and attend to all cached ones."""
        c = self.config
        q_BLHK, k_BLJK, v_BLJK = self.query(x), self.key(x), self.value(x)
        if c.qk_norm:
            q_BLHK, k_BLJK = c.qk_norm(self.query_norm, q_BLHK), c.qk_norm(self.key_norm, k_BLJK)
        row = context.key_positions.shape[1]
        q_BLHK = c.positions.rotate(q_BLHK, context.positions, length=row)
        k_BLJK = c.positions.rotate(k_BLJK, context.positions, length=row)
        q_BLHK = constrain(q_BLHK, "batch", "length", "heads", None)
        k_BLJK = constrain(k_BLJK, "batch", "length", "kv_heads", None)
        v_BLJK = constrain(v_BLJK, "batch", "length", "kv_heads", None)
        sinks = None if self.sinks is None else self.sinks[...]

        if state is None or state is Keep.KEYS:
            state = KVCache(k_BLJK, v_BLJK) if state else None
            if c.kv_heads % axis_size("heads"):  # the devices do not divide them: give every query head a copy
                k_BLJK, v_BLJK = (constrain(repeat(x, c), "batch", "length", "heads", None) for x in (k_BLJK, v_BLJK))
            y_BLHK = attend(q_BLHK, k_BLJK, v_BLJK, sinks, context, c)
        else:
            if context.cache_index is not None:
                start = (0, context.cache_index, 0, 0)
                state = KVCache(
                    jax.lax.dynamic_update_slice(state.keys, k_BLJK.astype(state.keys.dtype), start),
                    jax.lax.dynamic_update_slice(state.values, v_BLJK.astype(state.values.dtype), start),
                )
            y_BLHK = attend_to_cache(q_BLHK, state, sinks, context, c)
        y_BLHK = constrain(y_BLHK, "batch", "length", "heads", None)  # so that its gradient has this layout as well
        return Out(self.output(y_BLHK), state)


def repeat(x: Float[Array, "B L J K"], config: AttentionConfig) -> Float[Array, "B L H K"]:
    return jnp.repeat(x, config.heads // config.kv_heads, axis=2)


def attention_of(config: AttentionConfig) -> Callable[..., Float[Array, "B L H K"]]:
    """Return attention with the options of a configuration."""
    scores, (causal, window) = config.scores, config.mask.span
    return functools.partial(  # type: ignore[return-value]  # a pair only with return_lse
        flash_attention,
        causal=causal,
        window=window,
        softcap=scores.softcap if scores else None,
        scale=scores.scale if scores else None,
        slopes=config.positions.slopes(config.heads),
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
        q,
        k,
        v,
        bias=holes(config.mask, q.shape[1]),
        sinks=sinks,
        segment_ids=context.segment_ids,
        key_segment_ids=context.key_segment_ids,
        blocks=blocks,
    )


def holes(mask: Mask, length: int) -> Float[Array, "1 1 L L"] | None:
    """Return -inf for the keys in the span of a mask that a query does not see, or None where it sees all."""
    if not mask.has_holes:
        return None
    places = jnp.arange(length)  # two tokens of a document are as far apart in the row as in the document
    hidden = mask.hidden(places[:, None] - places[None, :])
    assert hidden is not None, "the mask has holes"
    return jnp.where(hidden, -jnp.inf, 0.0)[None, None]


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
    seen = (context.segment_ids[:, :, None] == context.key_segment_ids[:, None, :]) & config.mask.seen(distance_BLS)
    scores_BHLS = jnp.where(seen, 0.0, -jnp.inf)[:, None]
    if slopes := config.positions.slopes(config.heads):
        scores_BHLS = scores_BHLS - jnp.array(slopes)[None, :, None, None] * distance_BLS[:, None]
    options = {"sinks": sinks, "causal": False, "window": None, "slopes": None}
    return attention_of(config)(q, cache.keys, cache.values, bias=scores_BHLS, **options)
