"""A residual block: a mixer over the length, then a feed-forward layer over the width, each after a norm."""

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.layer import Layer, Out, TokenContext, dropout, joined
from jaxtrain.nn.mixers.base import MixerConfig
from jaxtrain.nn.norms.base import NormConfig
from jaxtrain.sharding import constrain


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockConfig:
    """The layers of a block. `post_norm` also normalises what each layer adds to the residual stream (Gemma 2)."""

    mixer: MixerConfig
    mlp: FeedForwardConfig
    post_norm: bool = False

    def build(self, d_model: int, *, norm: NormConfig, dropout: float, rngs: nnx.Rngs) -> "Block":
        return Block(self, d_model, norm=norm, dropout=dropout, rngs=rngs)


class Block(Layer):
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

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext, state=None) -> Out:
        # The residual stream is split along the length over `tensor`. Each layer gathers it, and its output is
        # reduce-scattered back.
        tap = Taps(context.taps)
        x = tap("block_input", x)
        h = constrain(self.mixer_norm(x), "batch", "length", None)
        mixed = self.mixer(h, context.in_layer(2), state)  # 0 and 1 are the sites of the block's own dropout
        h = constrain(tap("mixer_output", mixed.y), "batch", "residual_length", None)
        h = self.mixer_post_norm(h) if self.config.post_norm else h
        x = x + dropout(h, self.dropout, context.keys, site=0)
        h = constrain(self.mlp_norm(x), "batch", "length", None)
        fed = self.mlp(h, context.in_layer(3))
        h = constrain(tap("mlp_output", fed.y), "batch", "residual_length", None)
        h = self.mlp_post_norm(h) if self.config.post_norm else h
        x = x + dropout(h, self.dropout, context.keys, site=1)
        return Out(x, mixed.state, joined(mixer=mixed.sums, mlp=fed.sums), tap.values)

    def update_buffers(self, counts: Mapping[str, Any]) -> None:
        self.mixer.update_buffers(counts.get("mixer", {}))
        self.mlp.update_buffers(counts.get("mlp", {}))


class Taps:
    """Names the values of a block, for remat policies, and keeps those that the caller asked for."""

    def __init__(self, asked: Container[str]):
        self.values: dict[str, jax.Array] = {}
        self._asked = asked

    def __call__(self, name: str, x: jax.Array) -> jax.Array:
        x = checkpoint_name(x, name)
        if name in self._asked:
            self.values[name] = x
        return x
