"""A residual block: a mixer over the length, then a feed-forward layer over the width, each behind a norm."""

from dataclasses import dataclass

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.mixers.base import MixerConfig
from jaxtrain.nn.norms.base import NormConfig
from jaxtrain.nn.param import TokenContext, dropout
from jaxtrain.sharding import constrain


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockConfig:
    """`post_norm` normalises what each layer adds to the residual stream as well (Gemma 2)."""

    mixer: MixerConfig
    mlp: FeedForwardConfig
    post_norm: bool = False

    def build(self, d_model: int, *, norm: NormConfig, dropout: float, rngs: nnx.Rngs) -> "Block":
        return Block(self, d_model, norm=norm, dropout=dropout, rngs=rngs)

    def matrix_count(self, d_model: int) -> int:
        """Return the parameters that multiply every token."""
        return self.mixer.matrix_count(d_model) + self.mlp.matrix_count(d_model)

    def parameter_count(self, d_model: int, norm: NormConfig) -> int:
        norms = (4 if self.post_norm else 2) * norm.parameter_count(d_model)
        return self.mixer.parameter_count(d_model) + self.mlp.parameter_count(d_model) + norms


class Block(nnx.Module):
    def __init__(self, config: BlockConfig, d_model: int, *, norm: NormConfig, dropout: float, rngs: nnx.Rngs):
        self.config = config
        self.dropout = dropout
        self.mixer_norm = norm.build(d_model)
        self.mixer = config.mixer.build(d_model, rngs=rngs)
        self.mlp_norm = norm.build(d_model)
        self.mlp = config.mlp.build(d_model, rngs=rngs)
        if config.post_norm:
            self.mixer_post_norm = norm.build(d_model)
            self.mlp_post_norm = norm.build(d_model)

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext, state=None) -> tuple[jax.Array, object]:
        # The residual stream is split along the length over `tensor`; each layer gathers it and scatters its sum back.
        x = checkpoint_name(x, "block_input")
        h = constrain(self.mixer_norm(x), "batch", "length", None)
        h, state = self.mixer(h, context, state)
        h = constrain(checkpoint_name(h, "mixer_output"), "batch", "residual_length", None)
        h = self.mixer_post_norm(h) if self.config.post_norm else h
        x = x + dropout(h, self.dropout, context.dropout_keys, site=0)
        h = constrain(self.mlp_norm(x), "batch", "length", None)
        h = constrain(checkpoint_name(self.mlp(h), "mlp_output"), "batch", "residual_length", None)
        h = self.mlp_post_norm(h) if self.config.post_norm else h
        return x + dropout(h, self.dropout, context.dropout_keys, site=1), state
