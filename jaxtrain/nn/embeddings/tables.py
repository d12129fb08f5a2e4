"""Tables of token embeddings and of learned positions, and the look-up of their rows."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxtrain.axes import Kind
from jaxtrain.nn.param import normal
from jaxtrain.sharding import axis_size, constrain


class Embedding(nnx.Module):
    """A table looked up by token. Elements have variance 1/D, so that a tied head starts near uniform probabilities."""

    def __init__(self, vocab_size: int, d_model: int, *, rngs: nnx.Rngs):
        shape, names = (vocab_size, d_model), ("vocab", "embed")
        self.table = normal(rngs.params(), shape, names, fan_in=d_model, kind=Kind.TABLE)


class PositionTable(nnx.Module):
    """A learned vector for each position (GPT-2)."""

    def __init__(self, max_length: int, d_model: int, *, rngs: nnx.Rngs):
        shape, names = (max_length, d_model), ("positions", "embed")
        self.table = normal(rngs.params(), shape, names, fan_in=d_model, kind=Kind.TABLE)


def look_up(table: Float[Array, "W D"], ids: Int[Array, "B L"], dtype: jnp.dtype | str) -> Float[Array, "B L D"]:
    """Return rows of a table, which is stored in shards, in the given dtype."""
    # Every device looks up all rows, of which the ids are whole, in its part of the width. Then the result is resharded
    # from parts of the width to rows, which moves far less data than a gather of the table. Rows that the devices do
    # not divide, such as a prompt, are cut along the length before their width is gathered.
    length = "residual_length" if len(ids) % axis_size("batch") else "length"
    x = jnp.take(table.astype(dtype), constrain(ids, "wide_batch", "length"), axis=0, mode="clip")
    return constrain(x, "wide_batch", length, "embed")
