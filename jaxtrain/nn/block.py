"""A residual block: a mixer over the length and a feed-forward layer over the width, with norms.

By default each layer reads the normalised stream, one layer after the other: pre-norm, Xiong et al. (2020),
arXiv:2002.04745. Norms of what a layer adds are of Gemma 2 (2024), arXiv:2408.00118, and alone of OLMo 2 (2024),
arXiv:2501.00656. Parallel layers are of GPT-J (Wang and Komatsuzaki, 2021) and PaLM (2022), arXiv:2204.02311.
"""

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
from jaxtrain.ranges import check_positive
from jaxtrain.sharding import constrain


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockConfig:
    """The layers of a block, and how they are joined to the residual stream.

    `pre_norm` normalises what each layer reads, `post_norm` what it adds to the stream, which `residual_scale`
    multiplies (Granite). With `parallel` both layers read the stream before the block, and with `shared_norm`
    (Cohere) the same normalised values of it.
    """

    mixer: MixerConfig
    mlp: FeedForwardConfig
    pre_norm: bool = True
    post_norm: bool = False
    parallel: bool = False
    shared_norm: bool = False
    residual_scale: float = 1.0

    def __post_init__(self):
        check_positive(self, "residual_scale")
        if not self.pre_norm and not self.post_norm:
            raise ValueError("pre_norm=False: a block without norms does not train; set post_norm=True")
        if self.shared_norm and not (self.parallel and self.pre_norm):
            raise ValueError("shared_norm=True: only parallel layers read the same values; set parallel and pre_norm")

    def build(self, d_model: int, *, norm: NormConfig, dropout: float, rngs: nnx.Rngs) -> "Block":
        return Block(self, d_model, norm=norm, dropout=dropout, rngs=rngs)


class Block(Layer):
    def __init__(self, config: BlockConfig, d_model: int, *, norm: NormConfig, dropout: float, rngs: nnx.Rngs):
        self.config = config
        self.dropout = dropout
        if config.pre_norm:
            self.mixer_norm = norm.build(d_model)
        self.mixer = config.mixer.build(d_model, rngs=rngs)
        if config.pre_norm and not config.shared_norm:
            self.mlp_norm = norm.build(d_model)
        self.mlp = config.mlp.build(d_model, rngs=rngs)
        if config.post_norm:
            self.mixer_post_norm = norm.build(d_model)
            self.mlp_post_norm = norm.build(d_model)

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext, state=None) -> Out:
        # The residual stream is split along the length over `tensor`. Each layer gathers it, and its output is
        # reduce-scattered back.
        c, tap = self.config, Taps(context.taps)
        x = before = tap("block_input", x)
        h = read = constrain(self.mixer_norm(x) if c.pre_norm else x, "batch", "length", None)
        mixed = self.mixer(h, context.in_layer(2), state)  # 0 and 1 are the sites of the block's own dropout
        h = constrain(tap("mixer_output", mixed.y), "batch", "residual_length", None)
        h = self._scaled(self.mixer_post_norm(h) if c.post_norm else h)
        x = x + dropout(h, self.dropout, context.keys, site=0)
        if not c.shared_norm:
            h = before if c.parallel else x
            read = constrain(self.mlp_norm(h) if c.pre_norm else h, "batch", "length", None)
        fed = self.mlp(read, context.in_layer(3))
        h = constrain(tap("mlp_output", fed.y), "batch", "residual_length", None)
        h = self._scaled(self.mlp_post_norm(h) if c.post_norm else h)
        x = x + dropout(h, self.dropout, context.keys, site=1)
        return Out(x, mixed.state, joined(mixer=mixed.sums, mlp=fed.sums), tap.values)

    def _scaled(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return x if self.config.residual_scale == 1.0 else x * self.config.residual_scale

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
