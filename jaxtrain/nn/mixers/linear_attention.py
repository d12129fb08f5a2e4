"""Linear attention as a mixer: a state of fixed size that decays, in place of all keys and values.

The decay's type makes it retention (`FixedDecay`), Mamba-2's (`StepDecay`) or gated linear attention
(`ChannelDecay`); the recurrence is `jaxtrain_kernels.linear_attention`, the rest of the layer `nn/mixers/recurrent.py`.
Queries and keys have no feature map, and outputs no normaliser but the norm behind them. Order is known through the
decay alone.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtrain_kernels.choice import check_named
from jaxtrain_kernels.chunks import check_chunk_size
from jaxtrain_kernels.linear_attention import IMPLEMENTATIONS, linear_attention, recurrent_step
from jaxtyping import Array, Float

from jaxtrain.nn.layer import Layer, Out, TokenContext
from jaxtrain.nn.linear.base import LinearConfig
from jaxtrain.nn.linear.dense import Dense
from jaxtrain.nn.mixers.base import MixerConfig
from jaxtrain.nn.mixers.decay import ChannelDecay, DecayConfig
from jaxtrain.nn.mixers.recurrent import (
    RecurrentHeads,
    RecurrentShape,
    RecurrentState,
    advance,
    held_by_padding,
    is_written,
    mix_sequences,
)
from jaxtrain.nn.norms.base import NormConfig
from jaxtrain.nn.norms.rms_norm import RMSNormConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearAttentionConfig(MixerConfig):
    """Linear attention: a state of fixed size that decays, in place of all keys and values.

    `implementation` names a kernel that is not the default for the device yet; it runs over whole sequences.
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    decay: DecayConfig = ChannelDecay()
    norm: NormConfig = RMSNormConfig()
    chunk_size: int = 64
    implementation: str | None = None
    linear: LinearConfig = Dense()
    paper: ClassVar[str] = "arXiv:2006.16236"

    def __post_init__(self):
        self.shape.check()
        check_chunk_size(self.chunk_size)
        check_named("linear_attention", IMPLEMENTATIONS, self.implementation)

    @property
    def shape(self) -> RecurrentShape:
        return RecurrentShape(self.heads, self.kv_heads, self.head_dim, self.value_dim)

    def build(self, d_model: int, *, rngs: nnx.Rngs) -> "LinearAttention":
        return LinearAttention(self, d_model, rngs=rngs)

    def mixing_flops(self, length: int) -> float:
        """Return the operations of a token's recurrence, forward and backward; chunks take more, in fewer steps."""
        return 6.0 * self.shape.products()


class LinearAttention(Layer):
    def __init__(self, config: LinearAttentionConfig, d_model: int, *, rngs: nnx.Rngs):
        self.config = c = config
        self.heads = RecurrentHeads(c.shape, d_model, norm=c.norm, linear=c.linear, rngs=rngs)
        self.decay = c.decay.build(d_model, c.kv_heads, c.head_dim, rngs=rngs)

    def initial_state(self, batch: int, length: int, dtype: jnp.dtype) -> RecurrentState:
        """Return the state before the first token; its size does not depend on the length."""
        return self.heads.initial_state(batch)

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext, state: RecurrentState | None = None) -> Out:
        """Mix along the length. With a state, the L new tokens continue it, one document a row."""
        c = self.config
        q, k, v = self.heads.project(x)
        q, log_decay = q * jnp.asarray(c.head_dim**-0.5, q.dtype), self.decay(x)
        mix = functools.partial(linear_attention, chunk_size=c.chunk_size)
        if state is None:
            y = mix_sequences(mix, c.shape, context, q, k, v, log_decay, implementation=c.implementation)
        else:
            k = jnp.where(is_written(context, k), k, 0)
            y, state = advance(mix, recurrent_step, state, q, k, v, held_by_padding(log_decay, context))
        return Out(self.heads.finish(y, x), state)
