"""A causal decoder: embedding, a pattern of blocks repeated R times, final norm, head.

The parameters of the pattern are stacked over its repeats ([R, ...] on every leaf) and the repeats run in a scan, so
neither the program nor its compile time grows with depth. The layout of the parameters is the same with the scan
unrolled. Nothing here knows of devices: `gather` and `constrain` carry logical names only.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxtrain.axes import Axes
from jaxtrain.fully_sharded import gather, narrow_gradients, of_layer
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.embed import Embedding, Output, Positions, look_up
from jaxtrain.nn.head import Head
from jaxtrain.nn.norms.base import NormConfig
from jaxtrain.nn.norms.rms_norm import RMSNormConfig
from jaxtrain.nn.param import TokenContext, axes_of, dropout, fold_in
from jaxtrain.nn.remat import NoRemat, RematPolicy
from jaxtrain.ranges import check_at_least_one, check_positive_or_none
from jaxtrain.shapes import Batch, ParamTree
from jaxtrain.sharding import axis_size, constrain


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """The architecture, and how it is computed (`compute_dtype`, `remat`, ...), which changes no parameter.

    A loss computes the logits of at most `vocab_tile` words a device at a time. Those of a larger vocabulary are never
    kept but computed again in the backward pass, which costs a product with the head.
    """

    vocab_size: int
    d_model: int
    repeats: int
    pattern: tuple[BlockConfig, ...]
    max_length: int
    norm: NormConfig = RMSNormConfig()
    tied_embeddings: bool = False
    learned_positions: bool = False
    scale_embeddings: bool = False  # by sqrt(d_model), as Gemma does
    logit_softcap: float | None = None
    dropout: float = 0.0
    compute_dtype: str = "float32"
    remat: RematPolicy = NoRemat()
    vocab_tile: int = 16_384
    scan: bool = True

    def __post_init__(self):
        if self.compute_dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"compute_dtype={self.compute_dtype!r}: must be float32, bfloat16 or float16")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout={self.dropout}: must be in [0, 1)")
        if not self.pattern:
            raise ValueError("pattern=(): a decoder needs at least one block; give a tuple of BlockConfig")
        check_at_least_one(self, "vocab_size", "d_model", "repeats", "max_length", "vocab_tile")
        check_positive_or_none(self, "logit_softcap")

    def build(self, key: Key[Array, ""]) -> "Decoder":
        return Decoder(self, rngs=nnx.Rngs(key))

    @property
    def layers(self) -> int:
        return self.repeats * len(self.pattern)

    @property
    def parameter_count(self) -> int:
        blocks = sum(block.parameter_count(self.d_model, self.norm) for block in self.pattern)
        tables = self.vocab_size * (1 if self.tied_embeddings else 2) + self.learned_positions * self.max_length
        return self.repeats * blocks + tables * self.d_model + self.norm.parameter_count(self.d_model)

    def flops_per_token(self, length: int) -> float:
        """Return the floating-point operations a token costs in forward and backward, recomputation not counted.

        6 a parameter that multiplies (head included, look-ups not), and what mixing along the length takes: for
        attention 12 a head dimension for every key a query sees. Counted in Kaplan et al. (2020), arXiv:2001.08361,
        section 2.1, with causal attention at its true half.
        """
        matrices = self.repeats * sum(block.matrix_count(self.d_model) for block in self.pattern)
        mixing = self.repeats * sum(block.mixer.mixing_flops(length) for block in self.pattern)
        return 6.0 * (matrices + self.vocab_size * self.d_model) + mixing


def context_of(batch: Batch, dropout_keys: Key[Array, " B"] | None) -> TokenContext:
    """Return what layers know of the tokens of whole sequences."""
    return TokenContext(
        positions=batch.positions,
        segment_ids=batch.segment_ids,
        key_positions=batch.positions,
        key_segment_ids=batch.segment_ids,
        dropout_keys=dropout_keys,
    )


class Pattern(nnx.Module):
    """The blocks of one repeat."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.blocks = nnx.List(
            [b.build(config.d_model, norm=config.norm, dropout=config.dropout, rngs=rngs) for b in config.pattern]
        )

    def __call__(self, x, context: TokenContext, states):
        states = list(states)
        for i, block in enumerate(self.blocks):
            x, states[i] = block(x, context.in_layer(i), states[i])
        return x, tuple(states)


class Decoder(nnx.Module):
    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.config = c = config
        self.embedding = Embedding(c.vocab_size, c.d_model, rngs=rngs)
        if c.learned_positions:
            self.positions = Positions(c.max_length, c.d_model, rngs=rngs)
        self.blocks = nnx.vmap(lambda r: Pattern(c, rngs=r))(rngs.split(c.repeats))
        self.final_norm = c.norm.build(c.d_model)
        if not c.tied_embeddings:
            self.output = Output(c.vocab_size, c.d_model, rngs=rngs)

    def axes(self) -> dict:
        """Return the facts about every parameter, as a tree like the parameters."""
        return axes_of(self) | {"blocks": jax.tree.map(Axes.stacked, self.layer_axes())}

    def __call__(self, batch: Batch, dropout_keys: Key[Array, " B"] | None = None) -> Float[Array, "B L W"]:
        """Return float32 logits of whole sequences."""
        return self.head.logits(self.hidden(batch, dropout_keys))

    def hidden(self, batch: Batch, dropout_keys: Key[Array, " B"] | None = None) -> Float[Array, "B L D"]:
        """Return what the head reads."""
        if batch.tokens.shape[1] > self.config.max_length:
            raise ValueError(
                f"sequence of {batch.tokens.shape[1]} tokens: the model's max_length is {self.config.max_length}"
            )
        context = context_of(batch, dropout_keys)
        x = self.embed(batch.tokens, context)
        return self.run_blocks(x, context, self.no_states())[0]

    def no_states(self) -> tuple[None, ...]:
        return (None,) * len(self.config.pattern)

    def initial_states(self, batch: int, length: int):
        """Return empty decoding states for so many tokens, stacked over repeats."""
        dtype = jnp.dtype(self.config.compute_dtype)
        one = tuple(block.mixer.initial_state(batch, length, dtype) for block in self.blocks.blocks)
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (self.config.repeats, *leaf.shape)), one)

    def embed(self, tokens: Int[Array, "B L"], context: TokenContext) -> Float[Array, "B L D"]:
        c = self.config
        x = self._look_up(self.embedding.table, tokens)
        if c.scale_embeddings:
            x = x * jnp.asarray(c.d_model**0.5, x.dtype)
        if c.learned_positions:
            x = x + self._look_up(self.positions.table, context.positions)
        x = dropout(x, c.dropout, fold_in(context.dropout_keys, c.repeats), site=0)
        return constrain(x, "batch", "residual_length", None)

    def run_blocks(self, x: Float[Array, "B L D"], context: TokenContext, states):
        """Run all repeats of the pattern; return the hidden states and the new decoding states."""
        c, axes, pattern = self.config, self.layer_axes(), self.pattern()

        def repeat(x, inputs):
            layer, params, state = inputs
            params = of_layer(stacked, layer) if in_stages else params
            return pattern(gather(params, axes, c.compute_dtype), x, context.in_layer(layer), state)

        stacked = narrow_gradients(nnx.to_pure_dict(nnx.state(self.blocks)), axes, c.compute_dtype)
        in_stages = axis_size("layers") > 1
        xs = (jnp.arange(c.repeats), None if in_stages else stacked, states)
        return jax.lax.scan(c.remat.wrap(repeat), x, xs, unroll=1 if c.scan else c.repeats)

    def pattern(self) -> Callable:
        """Return one repeat as a pure function of gathered parameters: (params, x, context, states) -> (x, states)."""
        graph = nnx.graphdef(self.blocks)
        return lambda params, x, context, states: nnx.merge(graph, params)(x, context, states)

    def layer_axes(self) -> dict:
        """Return the facts about the parameters of one repeat."""
        return axes_of(self.blocks)

    @property
    def head(self) -> Head:
        """Return what makes logits or cross-entropies of hidden states."""
        c = self.config
        table = self.embedding.table if c.tied_embeddings else self.output.kernel
        return Head(self.final_norm, table[...], table.axes, c.compute_dtype, c.logit_softcap, c.vocab_tile)

    def _look_up(self, param: nnx.Param, ids: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        # Every device looks all rows up in its part of the width, then rows and widths change places: far less
        # travels than if the table were gathered.
        x = look_up(param[...].astype(self.config.compute_dtype), ids)
        return constrain(x, "wide_batch", "length", "embed")


def abstract_model(config: DecoderConfig) -> tuple[nnx.GraphDef, ParamTree, dict]:
    """Return a model's graph, the shapes of its parameters and the facts about them, computing nothing."""
    model = nnx.eval_shape(lambda: config.build(jax.random.key(0)))
    graph, params = nnx.split(model, nnx.Param)
    return graph, nnx.to_pure_dict(params), model.axes()
