"""A residual block: a mixer over the length and a feed-forward layer over the width, joined to the residual stream."""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from jaxtrain.axes import Axes
from jaxtrain.nn.depth import Depth
from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.joins import Join, PreNorm
from jaxtrain.nn.joins.base import Then, unchanged
from jaxtrain.nn.layer import Layer, Out, TokenContext, dropout, greatest, joined
from jaxtrain.nn.mixers.base import MixerConfig
from jaxtrain.nn.norms.base import NormConfig
from jaxtrain.nn.param import attach, attached, is_variable
from jaxtrain.sharding import constrain

TAPS = frozenset(("block_input", "mixer_output", "mlp_output"))


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockConfig:
    """The layers of a block, and how they are joined to the residual stream.

    `depth` says how often each token passes through the block; None is once.
    """

    mixer: MixerConfig
    mlp: FeedForwardConfig
    join: Join = PreNorm()
    depth: Depth | None = None

    def __post_init__(self):
        for name, layer in (("mixer", self.mixer), ("mlp", self.mlp)):
            if layer.absent == (name in self.join.layers):
                has = "a" if name in self.join.layers else "no"
                raise ValueError(f"{name}={layer!r}: join={self.join!r} is for a block with {has} layer of this kind")
        if self.depth is not None:
            self.depth.check(self.mixer, self.mlp, self.join)

    def mixing_flops(self, length: int) -> float:
        """Return the FLOPs that mixing takes for a token of a sequence of this length, forward and backward."""
        return self.depth.mixing_flops(self.mixer, length) if self.depth else self.mixer.mixing_flops(length)

    def build(self, d_model: int, *, norm: NormConfig, dropout: float, rngs: nnx.Rngs) -> "Block":
        return Block(self, d_model, norm=norm, dropout=dropout, rngs=rngs)


class Block(Layer):
    def __init__(self, config: BlockConfig, d_model: int, *, norm: NormConfig, dropout: float, rngs: nnx.Rngs):
        self.config = config
        self.dropout = dropout
        self.mixer = config.mixer.build(d_model, rngs=rngs)
        self.mlp = config.mlp.build(d_model, rngs=rngs)
        self.of_join = attach(self, config.join.build(d_model, norm))
        if config.depth is not None:
            for variable in jax.tree.leaves(nnx.state(self), is_leaf=is_variable):
                variable.set_metadata(axes=_passed(variable.axes, config.depth.passes))
            self.of_depth = attach(self, config.depth.build(d_model, rngs=rngs))

    def initial_state(self, batch: int, length: int, dtype: jnp.dtype) -> Any:
        """Return the decoding state before the first of `length` tokens."""
        state, depth = self.mixer.initial_state(batch, length, dtype), self.config.depth
        return state if depth is None else depth.initial_state(state, batch, length)

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext, state=None) -> Out:
        if self.config.depth is None:
            return self._pass(x, context, state)
        if not TAPS.isdisjoint(context.taps):
            raise ValueError(f"depth={self.config.depth!r}: not all tokens pass through the block, so it has no taps")
        return self.config.depth(self._pass, x, context, state, attached(self, self.of_depth))

    def _pass(self, x: Float[Array, "B L D"], context: TokenContext, state: Any) -> Out:
        """Return the stream behind the layers of the block."""
        tap = Taps(context.taps)

        def finish(name: str, site: int, y: Float[Array, "B L D"], then: Then) -> Float[Array, "B L D"]:
            y = constrain(tap(name, y), "batch", "residual_length", None)
            return dropout(then(y), self.dropout, context.keys, site)

        # 0 and 1 are the sites of the block's own dropout.
        mixer = _Run(lambda h: self.mixer(h, context.in_layer(2), state), partial(finish, "mixer_output", 0))
        mlp = _Run(lambda h: self.mlp(h, context.in_layer(3)), partial(finish, "mlp_output", 1))
        x = self.config.join(tap("block_input", x), mixer, mlp, attached(self, self.of_join))
        called = {"mixer": mixer.outs, "mlp": mlp.outs}
        if any(len(outs) != (name in self.config.join.layers) for name, outs in called.items()):
            counts = f"mixer {len(mixer.outs)} times and mlp {len(mlp.outs)} times"
            raise ValueError(f"join={self.config.join!r}: it calls {counts}: call each of them once")
        new_state = mixer.outs[0].state if mixer.outs else state
        sums = joined(**{name: outs[0].sums for name, outs in called.items() if outs})
        return Out(x, new_state, sums, tap.values)

    def update_buffers(self, counts: Mapping[str, Any]) -> None:
        self.mixer.update_buffers(counts.get("mixer", {}))
        self.mlp.update_buffers(counts.get("mlp", {}))

    def report(self, counts: Mapping[str, Any]) -> dict[str, Float[Array, ""]]:
        parts: dict[str, Any] = {"mixer": self.mixer, "mlp": self.mlp, "depth": self.config.depth}
        return greatest(parts[name].report(own) for name, own in counts.items())


def _passed(axes: Axes, passes: float) -> Axes:
    """Return the facts about a parameter that tokens pass so often, in the mean."""
    return replace(axes, passes=axes.passes * passes)


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
