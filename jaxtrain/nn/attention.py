"""Grouped-query attention with rotary positions, in plain XLA form.

Vaswani et al. (2017), arXiv:1706.03762; grouped heads, Ainslie et al. (2023), arXiv:2305.13245; normalised queries and
keys, Dehghani et al. (2023), arXiv:2302.05442; logit soft cap, Gemma 2 (2024), arXiv:2408.00118; sliding window,
Beltagy et al. (2020), arXiv:2004.05150. Dropout of attention weights is left out: the models that had it no longer
train with it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxtrain.mesh import axis_size, constrain
from jaxtrain.nn.dense import dense
from jaxtrain.nn.norm import RMSNormConfig
from jaxtrain.nn.param import TokenContext, constant, normal
from jaxtrain.nn.rope import RopeConfig, rotate

MASKED = -1e30  # added to the scores of keys out of sight
QUERY_BLOCK = 512  # queries whose scores exist at once; longer sequences go block by block
CPU_QUERY_BLOCK = 128  # the same on CPU, where sequences go one by one, too: such a block of scores fits the cache


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionConfig:
    """`scale` multiplies the scores, head_dim**-0.5 by default; `window` counts the keys a query sees, itself too."""

    heads: int
    kv_heads: int
    head_dim: int
    rope: RopeConfig | None = RopeConfig()
    qk_norm: RMSNormConfig | None = None
    bias: bool = False
    window: int | None = None
    softcap: float | None = None
    scale: float | None = None

    def __post_init__(self):
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise ValueError(f"kv_heads={self.kv_heads}: must divide heads={self.heads}")
        if self.rope and self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim}: rotary positions need an even one")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window={self.window}: must be at least 1, or None for no window")

    def build(self, d_model: int, *, rngs: nnx.Rngs) -> "Attention":
        return Attention(self, d_model, rngs=rngs)

    def matrix_count(self, d_model: int) -> int:
        return 2 * d_model * self.head_dim * (self.heads + self.kv_heads)

    def parameter_count(self, d_model: int) -> int:
        norms = 2 * self.qk_norm.parameter_count(self.head_dim) if self.qk_norm else 0
        biases = self.head_dim * (self.heads + 2 * self.kv_heads) + d_model if self.bias else 0
        return self.matrix_count(d_model) + norms + biases

    def mean_keys(self, length: int) -> float:
        """Return the mean number of keys that a query of a sequence of this length sees."""
        window = min(self.window or length, length)
        return window - window * (window - 1) / (2 * length)

    def mixing_flops(self, length: int) -> float:
        """Return the operations of a token's scores and sums of values, forward and backward."""
        return 12.0 * self.heads * self.head_dim * self.mean_keys(length)


class KVCache(NamedTuple):
    keys: Float[Array, "B S J K"]
    values: Float[Array, "B S J K"]


class Attention(nnx.Module):
    def __init__(self, config: AttentionConfig, d_model: int, *, rngs: nnx.Rngs):
        self.config = c = config
        H, J, K = c.heads, c.kv_heads, c.head_dim
        self.query = normal(rngs.params(), (d_model, H, K), ("embed", "heads", "head_dim"), fan_in=d_model)
        self.key = normal(rngs.params(), (d_model, J, K), ("embed", "kv_heads", "head_dim"), fan_in=d_model)
        self.value = normal(rngs.params(), (d_model, J, K), ("embed", "kv_heads", "head_dim"), fan_in=d_model)
        self.output = normal(rngs.params(), (H, K, d_model), ("heads", "head_dim", "embed"), fan_in=H * K)
        if c.bias:
            self.query_bias = constant(0.0, (H, K), ("heads", "head_dim"))
            self.key_bias = constant(0.0, (J, K), ("kv_heads", "head_dim"))
            self.value_bias = constant(0.0, (J, K), ("kv_heads", "head_dim"))
            self.output_bias = constant(0.0, (d_model,), ("width",))
        if c.qk_norm:
            self.query_norm = c.qk_norm.build(K)
            self.key_norm = c.qk_norm.build(K)

    def initial_state(self, batch: int, length: int, dtype: jnp.dtype) -> KVCache:
        """Return an empty cache for so many tokens."""
        shape = (batch, length, self.config.kv_heads, self.config.head_dim)
        return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))

    def __call__(
        self, x: Float[Array, "B L D"], context: TokenContext, state: KVCache | None = None
    ) -> tuple[Float[Array, "B L D"], KVCache | None]:
        """Attend. With a state, the L new tokens are written at `context.cache_index` and see all that is cached."""
        c = self.config
        q_BLHK = dense(x, self.query[...])
        k_BLJK = dense(x, self.key[...])
        v_BLJK = dense(x, self.value[...])
        if c.bias:
            q_BLHK = q_BLHK + self.query_bias[...].astype(x.dtype)[None, None]
            k_BLJK = k_BLJK + self.key_bias[...].astype(x.dtype)[None, None]
            v_BLJK = v_BLJK + self.value_bias[...].astype(x.dtype)[None, None]
        if c.qk_norm:
            q_BLHK, k_BLJK = self.query_norm(q_BLHK), self.key_norm(k_BLJK)
        if c.rope:
            q_BLHK = rotate(q_BLHK, context.positions, c.rope)
            k_BLJK = rotate(k_BLJK, context.positions, c.rope)
        q_BLHK = constrain(q_BLHK, "batch", "length", "heads", None)
        k_BLJK = constrain(k_BLJK, "batch", "length", "kv_heads", None)
        v_BLJK = constrain(v_BLJK, "batch", "length", "kv_heads", None)

        if state is None:
            if c.kv_heads % axis_size("heads"):  # fewer of them than devices: every head takes a copy along
                k_BLJK, v_BLJK = (constrain(repeat(x, c), "batch", "length", "heads", None) for x in (k_BLJK, v_BLJK))
            y_BLHK = attend_whole(q_BLHK, k_BLJK, v_BLJK, context, c)
        else:
            at = (0, context.cache_index, 0, 0)
            state = KVCache(
                jax.lax.dynamic_update_slice(state.keys, k_BLJK.astype(state.keys.dtype), at),
                jax.lax.dynamic_update_slice(state.values, v_BLJK.astype(state.values.dtype), at),
            )
            y_BLHK = attend(q_BLHK, state.keys, state.values, visible(context, c.window), c)
        y_BLHK = constrain(y_BLHK, "batch", "length", "heads", None)  # for its gradient, which this lays out alike
        y = dense(y_BLHK, self.output[...], inputs=2)
        return (y + self.output_bias[...].astype(x.dtype)[None, None] if c.bias else y), state


def repeat(x: Float[Array, "B L J K"], config: AttentionConfig) -> Float[Array, "B L H K"]:
    return jnp.repeat(x, config.heads // config.kv_heads, axis=2)


def visible(context: TokenContext, window: int | None) -> Bool[Array, "B L S"]:
    """Return which keys each query sees: earlier ones of its own document, within the window."""
    distance_BLS = context.positions[:, :, None] - context.key_positions[:, None, :]
    seen = (context.segment_ids[:, :, None] == context.key_segment_ids[:, None, :]) & (distance_BLS >= 0)
    return seen if window is None else seen & (distance_BLS < window)


def attend(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B S J K"],
    v: Float[Array, "B S J K"],
    seen: Bool[Array, "B L S"],
    config: AttentionConfig,
) -> Float[Array, "B L H K"]:
    """softmax(softcap(scale q k^T)) v over the keys seen; scores, softmax and sums in float32.

    Division by the sum comes after the product with the values, L x K rather than L x S of it.
    """
    B, L, H, K = q.shape
    S, J, G = k.shape[1], k.shape[2], q.shape[2] // k.shape[2]
    scale = K**-0.5 if config.scale is None else config.scale
    # The G query heads of a key head are rows of one matrix product.
    q_BJMK = (q * jnp.asarray(scale, q.dtype)).reshape(B, L, J, G, K).transpose(0, 2, 3, 1, 4).reshape(B, J, G * L, K)
    scores = jnp.einsum("BJMK,BSJK->BJMS", q_BJMK, k, preferred_element_type=jnp.float32).reshape(B, J, G, L, S)
    if config.softcap is not None:
        scores = config.softcap * jnp.tanh(scores / config.softcap)
    scores = scores + jnp.where(seen, 0.0, MASKED)[:, None, None]
    exponentials = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    e_BJMS = exponentials.astype(v.dtype).reshape(B, J, G * L, S)
    y_BJMK = jnp.einsum("BJMS,BSJK->BJMK", e_BJMS, v, preferred_element_type=jnp.float32)
    y_BJGLK = y_BJMK.reshape(B, J, G, L, K) / jnp.sum(exponentials, axis=-1, keepdims=True)
    return y_BJGLK.astype(v.dtype).transpose(0, 3, 1, 2, 4).reshape(B, L, H, K)


def attend_whole(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L J K"],
    v: Float[Array, "B L J K"],
    context: TokenContext,
    config: AttentionConfig,
) -> Float[Array, "B L H K"]:
    """Attend over whole sequences, in the blocks that suit the device.

    On CPU, scores larger than the cache cost more than the products around them: one sequence at a time takes a third
    of the time. Where sequences are split over devices each has few, and they stay together.
    """

    def together(q, k, v, context):
        return attend_in_blocks(q, k, v, context, config, block=QUERY_BLOCK)

    def one_by_one(q, k, v, context):
        def one(row):
            rows = jax.tree.map(lambda x: x[None], row)
            return attend_in_blocks(*rows, config, block=CPU_QUERY_BLOCK)[0]

        return jax.lax.map(one, (q, k, v, context))

    context = context._replace(dropout_keys=None)
    if axis_size("batch") > 1:
        return together(q, k, v, context)
    return jax.lax.platform_dependent(q, k, v, context, cpu=one_by_one, default=together)


def attend_in_blocks(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L J K"],
    v: Float[Array, "B L J K"],
    context: TokenContext,
    config: AttentionConfig,
    *,
    block: int,
) -> Float[Array, "B L H K"]:
    """Attend a block of queries at a time, each block only to the keys it can see.

    Positions grow with the index inside a document, so no key after a block's end and none before its window matters.
    Scores are recomputed in the backward pass block by block: no L x L buffer exists where L exceeds the block.
    """

    def attend_block(q, k, v, context):
        return attend(q, k, v, visible(context, config.window), config)

    L = q.shape[1]
    if block >= L:
        return attend_block(q, k, v, context)
    outputs = []
    for start in range(0, L, block):
        end = min(start + block, L)
        first = 0 if config.window is None else max(0, start - config.window + 1)
        part = context._replace(
            positions=context.positions[:, start:end],
            segment_ids=context.segment_ids[:, start:end],
            key_positions=context.key_positions[:, first:end],
            key_segment_ids=context.key_segment_ids[:, first:end],
        )
        outputs.append(jax.checkpoint(attend_block)(q[:, start:end], k[:, first:end], v[:, first:end], part))
    return jnp.concatenate(outputs, axis=1)
