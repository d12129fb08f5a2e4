"""A residual block: a mixer over the length and a feed-forward layer over the width, joined to the residual stream."""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.joins import Join, PreNorm
from jaxtrain.nn.joins.base import Then, unchanged
from jaxtrain.nn.layer import Layer, Out, TokenContext, dropout, greatest, joined
from jaxtrain.nn.mixers.base import MixerConfig
from jaxtrain.nn.norms.base import NormConfig
from jaxtrain.nn.param import attach, attached
from jaxtrain.sharding import constrain


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockConfig:
    """The layers of a block, and how they are joined to the residual stream."""

    mixer: MixerConfig
    mlp: FeedForwardConfig
    join: Join = PreNorm()

    def build(self, d_model: int, *, norm: NormConfig, dropout: float, rngs: nnx.Rngs) -> "Block":
        return Block(self, d_model, norm=norm, dropout=dropout, rngs=rngs)


class Block(Layer):
    def __init__(self, config: BlockConfig, d_model: int, *, norm: NormConfig, dropout: float, rngs: nnx.Rngs):
        self.config = config
        self.dropout = dropout
        self.mixer = config.mixer.build(d_model, rngs=rngs)
        self.mlp = config.mlp.build(d_model, rngs=rngs)
        self.of_join = attach(self, config.join.build(d_model, norm))

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext, state=None) -> Out:
        tap = Taps(context.taps)

        def finish(name: str, site: int, y: Float[Array, "B L D"], then: Then) -> Float[Array, "B L D"]:
            y = constrain(tap(name, y), "batch", "residual_length", None)
            return dropout(then(y), self.dropout, context.keys, site)

        # 0 and 1 are the sites of the block's own dropout.
        mixer = _Run(lambda h: self.mixer(h, context.in_layer(2), state), partial(finish, "mixer_output", 0))
        mlp = _Run(lambda h: self.mlp(h, context.in_layer(3)), partial(finish, "mlp_output", 1))
        x = self.config.join(tap("block_input", x), mixer, mlp, attached(self, self.of_join))
        if not len(mixer.outs) == len(mlp.outs) == 1:
            counts = f"mixer {len(mixer.outs)} times and mlp {len(mlp.outs)} times"
            raise ValueError(f"join={self.config.join!r}: it calls {counts}: call each of them once")
        (mixed,), (fed,) = mixer.outs, mlp.outs
        return Out(x, mixed.state, joined(mixer=mixed.sums, mlp=fed.sums), tap.values)

    def update_buffers(self, counts: Mapping[str, Any]) -> None:
        self.mixer.update_buffers(counts.get("mixer", {}))
        self.mlp.update_buffers(counts.get("mlp", {}))

    def report(self, counts: Mapping[str, Any]) -> dict[str, Float[Array, ""]]:
        layers = {"mixer": self.mixer, "mlp": self.mlp}
        return greatest(layers[name].report(own) for name, own in counts.items())


class _Run:
    """A layer of a block in one forward pass, which the block's join calls."""

    def __init__(self, layer: Callable[[jax.Array], Out], finish: Callable[[jax.Array, Then], jax.Array]):
        self.outs: list[Out] = []  # of every call
        self._layer, self._finish = layer, finish

    def __call__(self, x: Float[Array, "B L D"], /, then: Then = unchanged) -> Float[Array, "B L D"]:
        # The residual stream is split along the length over `tensor`. Each layer gathers it, and its output is
        # reduce-scattered back.
        self.outs.append(self._layer(constrain(x, "batch", "length", None)))
        return self._finish(self.outs[-1].y, then)


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
