"""What recurrent mixers share: projections in and out, and a state of fixed size in place of a cache.

Each key-value head has a state of K x V, which the query heads of its group read. The output of every head is
normalised and gated before the last projection (Sun et al., 2023, arXiv:2307.08621). Short convolutions on queries,
keys and values are left out. A length split over devices is gathered: the recurrence runs over whole sequences.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtrain_kernels.choice import Implementation, check_named
from jaxtrain_kernels.chunks import check_chunk_size
from jaxtyping import Array, Float

from jaxtrain.nn.layer import TokenContext
from jaxtrain.nn.linear.base import LinearConfig
from jaxtrain.nn.linear.dense import Dense
from jaxtrain.nn.mixers.base import MixerConfig
from jaxtrain.nn.norms.base import NormConfig
from jaxtrain.nn.norms.rms_norm import RMSNormConfig
from jaxtrain.ranges import check_at_least_one
from jaxtrain.sharding import axis_size, constrain, on_each_device


class RecurrentShape(NamedTuple):
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int

    def check(self) -> None:
        check_at_least_one(self, *self._fields)
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads={self.kv_heads}: must divide heads={self.heads}")

    def products(self) -> int:
        """Return the multiplications of one step of a linear-attention state: it is written, and each head reads."""
        return (self.heads + self.kv_heads) * self.head_dim * self.value_dim


@dataclass(frozen=True, kw_only=True, slots=True)
class RecurrentConfig(MixerConfig):
    """The keys of a recurrent mixer. A subclass has a decay, and says which operation it runs.

    `implementation` names a kernel that is not the default for the device yet; it runs over whole sequences.
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    norm: NormConfig = RMSNormConfig()
    chunk_size: int = 64
    implementation: str | None = None
    linear: LinearConfig = Dense()
    operation: ClassVar[str]
    implementations: ClassVar[tuple[Implementation, ...]]

    def __post_init__(self):
        self.shape.check()
        check_chunk_size(self.chunk_size)
        check_named(self.operation, self.implementations, self.implementation)

    @property
    def shape(self) -> RecurrentShape:
        return RecurrentShape(self.heads, self.kv_heads, self.head_dim, self.value_dim)


class RecurrentState(NamedTuple):
    """The state before the next token, in float32."""

    state: Float[Array, "B J K V"]


class RecurrentHeads(nnx.Module):
    """The projections."""

    def __init__(self, shape: RecurrentShape, d_model: int, *, norm: NormConfig, linear: LinearConfig, rngs: nnx.Rngs):
        self.shape = shape
        width, heads, kv_heads = (d_model, "embed"), (shape.heads, "heads"), (shape.kv_heads, "kv_heads")
        channels, values = (shape.head_dim, "head_dim"), (shape.value_dim, "head_dim")
        self.query = linear.build((width,), (heads, channels), rngs=rngs)
        self.key = linear.build((width,), (kv_heads, channels), rngs=rngs)
        self.value = linear.build((width,), (kv_heads, values), rngs=rngs)
        self.gate = linear.build((width,), (heads, values), rngs=rngs)
        self.output = linear.build((heads, values), (width,), rngs=rngs)
        self.norm = norm.build(shape.value_dim)

    def initial_state(self, batch: int) -> RecurrentState:
        _, J, K, V = self.shape
        return RecurrentState(jnp.zeros((batch, J, K, V), jnp.float32))

    def project(self, x: Float[Array, "B L D"]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return queries, keys and values."""
        return self.query(x), self.key(x), self.value(x)

    def finish(self, y: Float[Array, "B L H V"], x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Return what the heads' outputs add to the residual stream."""
        y = self.norm(y) * jax.nn.silu(self.gate(x))
        return self.output(constrain(y, "batch", "length", "heads", None))


def mix_sequences(
    operation: Callable,
    shape: RecurrentShape,
    context: TokenContext,
    q: Float[Array, "B L H K"],
    *of_keys: Array | None,
    implementation: str | None,
) -> Float[Array, "B L H V"]:
    """Return the output of `operation` over whole sequences: whole along the length, heads over devices.

    Where there are fewer key-value heads than devices, every query head takes a copy along. An implementation that is
    asked for by name runs on each device for itself, as kernels must.
    """
    heads, copies = "kv_heads", 1
    if shape.kv_heads % axis_size("heads"):
        heads, copies = "heads", shape.heads // shape.kv_heads

    def named(x: Array | None) -> tuple[Array | None, tuple[str | None, ...]]:
        if x is None or x.ndim == 1:  # one number a head
            return (x if x is None or copies == 1 else jnp.repeat(x, copies)), (heads,)
        x = x if copies == 1 else jnp.repeat(x, copies, axis=2)
        return x, ("batch", None, heads, *[None] * (x.ndim - 3))

    def run(*arrays: Array | None) -> Array:
        *tensors, segment_ids = arrays
        return operation(*tensors, segment_ids=segment_ids, implementation=implementation)[0]

    arrays = (q, ("batch", None, "heads", None)), *map(named, of_keys), (context.segment_ids, ("batch", None))
    if implementation:
        return on_each_device(run, *arrays)
    return run(*(x if x is None else constrain(x, *names) for x, names in arrays))


def is_written(context: TokenContext, x: Float[Array, "B L J ..."]) -> Array:
    """Return where tokens reach a decoding state: padding, document 0, does not."""
    return jnp.expand_dims(context.segment_ids != 0, range(2, x.ndim))


def held_by_padding(log_decay: Array | None, context: TokenContext) -> Array | None:
    """Return the log-decay with 0 at padding, which then leaves a decoding state as it is."""
    if log_decay is None:
        return None
    log_decay = log_decay[None, None] if log_decay.ndim == 1 else log_decay
    return jnp.where(is_written(context, log_decay), log_decay, 0.0)


def advance(mix: Callable, one_step: Callable, state: RecurrentState, *inputs: Array | None):
    """Return the outputs of the L new tokens and the state behind them; one token takes no chunks."""
    if inputs[0].shape[1] > 1:
        y, new = mix(*inputs, initial_state=state.state)
        return y, RecurrentState(new)
    y, new = one_step(*(x if x is None else x[:, 0] for x in inputs), state.state)
    return y[:, None], RecurrentState(new)
