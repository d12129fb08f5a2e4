"""What recurrent mixers share: projections in and out, and a state of fixed size in place of a cache.

Each key-value head has a K x V state, which the query heads of its group read. The output of every head is
normalised and gated before the last projection (Sun et al., 2023, arXiv:2307.08621). The recurrence runs over whole
sequences, so a length that is split over devices is gathered. Short convolutions on queries, keys and values are left
out.
"""

from collections.abc import Callable, Mapping
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
        """Return the multiplications of a step of linear attention: key-value heads write, query heads read."""
        return (self.heads + self.kv_heads) * self.head_dim * self.value_dim


@dataclass(frozen=True, kw_only=True, slots=True)
class RecurrentConfig(MixerConfig):
    """The keys that recurrent mixers share. A subclass adds a decay, and names the operation that it runs.

    `implementation` names a kernel that is not yet the default of the device. It runs over whole sequences.
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    norm: NormConfig = RMSNormConfig()
    chunk_size: int = 64
    implementation: str | None = None
    linear: LinearConfig = Dense()
    neutral: ClassVar[tuple[str, ...]] = ("chunk_size", "implementation")
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
    """The projections in and out, with the norm and the gate of the output."""

    LINEARS: ClassVar[tuple[str, ...]] = ("query", "key", "value", "gate", "output")

    def __init__(
        self,
        shape: RecurrentShape,
        d_model: int,
        *,
        norm: NormConfig,
        linears: Mapping[str, LinearConfig],
        rngs: nnx.Rngs,
    ):
        self.shape = shape
        width, heads, kv_heads = (d_model, "embed"), (shape.heads, "heads"), (shape.kv_heads, "kv_heads")
        channels, values = (shape.head_dim, "head_dim"), (shape.value_dim, "head_dim")
        self.query = linears["query"].build((width,), (heads, channels), rngs=rngs)
        self.key = linears["key"].build((width,), (kv_heads, channels), rngs=rngs)
        self.value = linears["value"].build((width,), (kv_heads, values), rngs=rngs)
        self.gate = linears["gate"].build((width,), (heads, values), rngs=rngs)
        self.output = linears["output"].build((heads, values), (width,), rngs=rngs)
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
    """Return the output of `operation` over whole sequences: the length is whole on every device, the heads are split.

    Where the devices do not divide the key-value heads, every query head gets a copy of its own. An implementation that
    is asked for by name runs in a region, on each device by itself, as kernels must.
    """
    heads, copies = "kv_heads", 1
    if shape.kv_heads % axis_size("heads"):
        heads, copies = "heads", shape.heads // shape.kv_heads

    def with_names(x: Array | None) -> tuple[Array | None, tuple[str | None, ...]]:
        if x is None or x.ndim == 1:  # one number for each head
            return (x if x is None or copies == 1 else jnp.repeat(x, copies)), (heads,)
        x = x if copies == 1 else jnp.repeat(x, copies, axis=2)
        return x, ("batch", None, heads, *[None] * (x.ndim - 3))

    def run(*arrays: Array | None) -> Array:
        *tensors, segment_ids = arrays
        return operation(*tensors, segment_ids=segment_ids, implementation=implementation)[0]

    arrays = (q, ("batch", None, "heads", None)), *map(with_names, of_keys), (context.segment_ids, ("batch", None))
    if implementation:
        return on_each_device(run, *arrays)
    return run(*(x if x is None else constrain(x, *names) for x, names in arrays))


def is_written(context: TokenContext, x: Float[Array, "B L J ..."]) -> Array:
    """Return which steps write to a decoding state: those of tokens, not of padding (segment 0)."""
    return jnp.expand_dims(context.segment_ids != 0, range(2, x.ndim))


def keep_at_padding(log_decay: Array | None, context: TokenContext) -> Array | None:
    """Return the log-decay with 0 at padding, where the decoding state then stays as it is."""
    if log_decay is None:
        return None
    log_decay = log_decay[None, None] if log_decay.ndim == 1 else log_decay
    return jnp.where(is_written(context, log_decay), log_decay, 0.0)


def advance(mix: Callable, one_step: Callable, state: RecurrentState, q: Array, *others: Array | None):
    """Return the outputs of the L new tokens and the state after them. A single token takes one step, not a chunk."""
    if q.shape[1] > 1:
        y, new = mix(q, *others, initial_state=state.state)
        return y, RecurrentState(new)
    y, new = one_step(*(x if x is None else x[:, 0] for x in (q, *others)), state.state)
    return y[:, None], RecurrentState(new)
