"""A feed-forward layer with all that a layer may have: weights that are frozen, a buffer, a loss, and counts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from tiny import DECODER, variant

from jaxtrain.axes import Axes, Kind
from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.layer import Layer, Out, Sums, TokenContext
from jaxtrain.nn.linear.dense import Dense, multiply
from jaxtrain.nn.param import Buffer, Frozen, normal

SPEED = 0.05  # at which thresholds move
TERM = "hidden_z"


@dataclass(frozen=True, kw_only=True, slots=True)
class CountedConfig(FeedForwardConfig):
    """down(relu(up(x) - threshold)) + base(x), where nothing trains the base."""

    hidden: int
    z_loss: float = 1e-2

    def build(self, d_model: int, *, rngs: nnx.Rngs) -> "Counted":
        return Counted(self, d_model, rngs=rngs)


class Counted(Layer):
    """Its loss is the square of what the units see. Thresholds follow how often units were alive."""

    def __init__(self, config: CountedConfig, d_model: int, *, rngs: nnx.Rngs):
        self.config = config
        width, hidden = ((d_model, "embed"),), ((config.hidden, "mlp"),)
        self.up = Dense().build(width, hidden, rngs=rngs)
        self.down = Dense().build(hidden, width, rngs=rngs)
        base = normal(rngs.params(), (d_model, d_model), ("embed", None), fan_in=d_model)
        self.base = Frozen(base[...], axes=base.axes)
        self.threshold = Buffer(jnp.zeros(config.hidden), axes=Axes(("mlp",), Kind.VECTOR, cast=False))

    def __call__(self, x: jax.Array, context: TokenContext) -> Out:
        h = self.up(x) - self.threshold[...].astype(x.dtype)[None, None]
        real = context.real[..., None]
        z_loss = self.config.z_loss * jnp.sum(real * jnp.square(h.astype(jnp.float32)))
        alive = jnp.sum(real * (h > 0), axis=(0, 1))
        y = self.down(jax.nn.relu(h)) + multiply(x, self.base[...])
        return Out(y, sums=Sums({TERM: z_loss}, {"alive": alive, "tokens": jnp.sum(real)}))

    def update_buffers(self, counts: Mapping[str, Any]) -> None:
        self.threshold[...] += SPEED * (counts["alive"] / counts["tokens"] - 0.5)


def counted(**changes) -> DecoderConfig:
    """Return the tiny decoder with such a layer in the second block of its pattern."""
    block = DECODER.pattern[0]
    return variant(pattern=(block, BlockConfig(mixer=block.mixer, mlp=CountedConfig(hidden=48))), **changes)
