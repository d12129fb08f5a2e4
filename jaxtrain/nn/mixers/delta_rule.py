"""The delta rule as a mixer: a state of fixed size, in which a token replaces the value that its key had.

With `NoDecay` it is DeltaNet (Yang et al., 2024, arXiv:2406.06484), with `StepDecay` gated DeltaNet (Yang et al., 2024,
arXiv:2412.06464), each without its short convolutions. The recurrence is in `jaxtrain_kernels.delta_rule`, the rest of
the layer in `jaxtrain/nn/mixers/recurrent.py`. Queries and keys go through SiLU and are normalised to length 1.
"""

import functools
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtrain_kernels.choice import Implementation
from jaxtrain_kernels.delta_rule import IMPLEMENTATIONS, delta_rule, recurrent_step
from jaxtyping import Array, Float

from jaxtrain.nn.layer import Out, TokenContext
from jaxtrain.nn.mixers.base import Mixer
from jaxtrain.nn.mixers.decay import NoDecay, ScalarDecayConfig
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
class DeltaRuleConfig(RecurrentConfig):
    """The delta rule: a state of fixed size, in which a token replaces the value that its key had."""

    decay: ScalarDecayConfig = NoDecay()
    paper: ClassVar[str] = "arXiv:2406.06484"
    operation: ClassVar[str] = "delta_rule"
    implementations: ClassVar[tuple[Implementation, ...]] = IMPLEMENTATIONS

    def build(self, d_model: int, *, rngs: nnx.Rngs) -> "DeltaRule":
        return DeltaRule(self, d_model, rngs=rngs)

    def mixing_flops(self, length: int) -> float:
        """Return the FLOPs of a token's recurrence, forward and backward. Chunks take more, in fewer steps."""
        lookup = self.kv_heads * self.head_dim * self.value_dim  # of the value that the key had before
        return 6.0 * (self.shape.products() + lookup)


class DeltaRule(Mixer):
    def __init__(self, config: DeltaRuleConfig, d_model: int, *, rngs: nnx.Rngs):
        self.config = c = config
        linears = c.linear.of_layer(*RecurrentHeads.LINEARS, "beta")
        self.heads = RecurrentHeads(c.shape, d_model, norm=c.norm, linears=linears, rngs=rngs)
        self.beta = linears["beta"].build(((d_model, "embed"),), ((c.kv_heads, "kv_heads"),), rngs=rngs)
        self.decay = c.decay.build(d_model, c.kv_heads, c.head_dim, rngs=rngs)

    def initial_state(self, batch: int, length: int, dtype: jnp.dtype) -> RecurrentState:
        """Return the state before the first token. Its size does not depend on the length."""
        return self.heads.initial_state(batch)

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext, state: RecurrentState | None = None) -> Out:
        """Mix along the length. With a state, the L new tokens continue it, one document a row."""
        c = self.config
        q, k, v = self.heads.project(x)
        q, k = unit_length(jax.nn.silu(q)), unit_length(jax.nn.silu(k))
        beta = jax.nn.sigmoid(self.beta(x).astype(jnp.float32))
        log_decay = self.decay(x)
        mix = functools.partial(delta_rule, chunk_size=c.chunk_size)
        if state is None:
            y = mix_sequences(mix, c.shape, context, q, k, v, beta, log_decay, implementation=c.implementation)
        else:
            beta = jnp.where(is_written(context, beta), beta, 0)
            y, state = advance(mix, recurrent_step, state, q, k, v, beta, keep_at_padding(log_decay, context))
        return Out(self.heads.finish(y, x), state)


def unit_length(x: Float[Array, "B L H K"]) -> Float[Array, "B L H K"]:
    x32 = x.astype(jnp.float32)
    return (x32 * jax.lax.rsqrt(jnp.sum(jnp.square(x32), axis=-1, keepdims=True) + 1e-6)).astype(x.dtype)
