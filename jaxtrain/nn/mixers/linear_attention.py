"""Linear attention as a mixer: a state of fixed size that decays, in place of all keys and values.

With `FixedDecay` it is retention, with `StepDecay` the recurrence of Mamba-2, with `ChannelDecay` gated linear
attention. The recurrence is in `jaxtrain_kernels.linear_attention`, the rest of the layer in `nn/mixers/recurrent.py`.
Queries and keys have no feature map, and outputs no normaliser but the norm after them. Only the decay tells the order
of tokens.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtrain_kernels.choice import Implementation
from jaxtrain_kernels.linear_attention import IMPLEMENTATIONS, linear_attention, recurrent_step
from jaxtyping import Array, Float

from jaxtrain.nn.layer import Out, TokenContext
from jaxtrain.nn.mixers.base import Mixer
from jaxtrain.nn.mixers.decay import ChannelDecay, DecayConfig
from jaxtrain.nn.mixers.recurrent import (
    RecurrentConfig,
    RecurrentHeads,
    RecurrentState,
    advance,
    is_written,
    keep_at_padding,
    mix_sequences,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearAttentionConfig(RecurrentConfig):
    """Linear attention: a state of fixed size that decays, in place of all keys and values."""

    decay: DecayConfig = ChannelDecay()
    paper: ClassVar[str] = "arXiv:2006.16236"
    operation: ClassVar[str] = "linear_attention"
    implementations: ClassVar[tuple[Implementation, ...]] = IMPLEMENTATIONS

    def build(self, d_model: int, *, rngs: nnx.Rngs) -> "LinearAttention":
        return LinearAttention(self, d_model, rngs=rngs)

    def mixing_flops(self, length: int) -> float:
        """Return the FLOPs of a token's recurrence, forward and backward. Chunks take more, in fewer steps."""
        return 6.0 * self.shape.products()


class LinearAttention(Mixer):
    def __init__(self, config: LinearAttentionConfig, d_model: int, *, rngs: nnx.Rngs):
        self.config = c = config
        linears = c.linear.of_layer(*RecurrentHeads.LINEARS)
        self.heads = RecurrentHeads(c.shape, d_model, norm=c.norm, linears=linears, rngs=rngs)
        self.decay = c.decay.build(d_model, c.kv_heads, c.head_dim, rngs=rngs)

    def initial_state(self, batch: int, length: int, dtype: jnp.dtype) -> RecurrentState:
        """Return the state before the first token. Its size does not depend on the length."""
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
            y, state = advance(mix, recurrent_step, state, q, k, v, keep_at_padding(log_decay, context))
        return Out(self.heads.finish(y, x), state)
