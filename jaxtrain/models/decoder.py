"""A causal decoder: embedding, a pattern of blocks repeated R times, final norm, head.

The parameters of the pattern are stacked over its repeats ([R, ...] on every leaf) and the repeats run in a scan, so
neither the program nor its compile time grows with depth. A few layers on one CPU are unrolled (`DecoderConfig.scans`),
from parameters of the same layout. Blocks that come before the pattern are a stack of their own. `gather` and
`constrain` take logical names only.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Int, Key

from jaxtrain.axes import Axes, Kind
from jaxtrain.fully_sharded import gather, narrow_gradients, of_repeat
from jaxtrain.models.counts import Counts, counts
from jaxtrain.models.members import Members
from jaxtrain.models.sharing import Sharing, own_and_shared, share, whole_repeat
from jaxtrain.models.stacks import Stack, shortest
from jaxtrain.models.teacher import Teacher
from jaxtrain.models.trees import in_stacks, over_repeats, taught
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.embeddings import EmbeddingConfig, TokenEmbedding
from jaxtrain.nn.embeddings.tables import Embedding, look_up
from jaxtrain.nn.heads import Head, HeadConfig, LinearHead
from jaxtrain.nn.joins.base import unchanged
from jaxtrain.nn.layer import Keys, Layer, Out, Sums, TokenContext, dropout, fold_in, greatest, joined
from jaxtrain.nn.norms.base import NormConfig
from jaxtrain.nn.norms.rms_norm import RMSNormConfig
from jaxtrain.nn.param import attach, attached, axes_of, merge, split
from jaxtrain.nn.remat import NoRemat, RematPolicy
from jaxtrain.nn.trainable import Everything, Trainable, freeze_all, freeze_others
from jaxtrain.ranges import check_at_least_one
from jaxtrain.shapes import Batch, ModelState, ParamTree
from jaxtrain.sharding import axis_size, constrain, on_one_cpu, on_one_device

HEAD = Axes(("vocab", "embed"), Kind.MATRIX, cast=True)  # the facts about the table that the head multiplies with


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """The architecture, and how it is computed (`compute_dtype`, `remat`, ...), which changes no parameter (`neutral`).

    The blocks in `first` run once, before the repeats of the pattern: such as the dense layers of a mixture of experts.
    Where a device has more than two tiles of the vocabulary (`nn/heads/head.py: TILE`), a loss computes logits one tile
    at a time. The backward pass then recomputes them, which costs a product with the head. The tables of the vocabulary
    have a multiple of `vocab_multiple` rows; those that pad it are never looked up, and have no part in the loss.
    `sharing` says which parameters all repeats share; by default there are none. `scan` says whether repeats run in a
    scan; by default `scans` decides.
    """

    vocab_size: int
    d_model: int
    repeats: int
    pattern: tuple[BlockConfig, ...]
    max_length: int
    first: tuple[BlockConfig, ...] = ()
    vocab_multiple: int = 1
    norm: NormConfig = RMSNormConfig()
    embedding: EmbeddingConfig = TokenEmbedding()
    head: HeadConfig = LinearHead()
    sharing: Sharing | None = None
    dropout: float = 0.0
    compute_dtype: str = "float32"
    remat: RematPolicy = NoRemat()
    scan: bool | None = None
    trainable: Trainable = Everything()
    teacher: Teacher | None = None
    neutral: ClassVar[tuple[str, ...]] = (  # as in a Technique
        "max_length",
        "vocab_multiple",
        "dropout",
        "compute_dtype",
        "remat",
        "scan",
        "trainable",
        "teacher",
    )

    def __post_init__(self):
        if self.compute_dtype not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"compute_dtype={self.compute_dtype!r}: must be float32, bfloat16 or float16")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout={self.dropout}: must be in [0, 1)")
        if not self.pattern:
            raise ValueError("pattern=(): a decoder needs at least one block; give a tuple of BlockConfig")
        if self.head.linear:
            self.head.linear.check_head()
        for block in self.named_blocks.values():
            block.mlp.check_vocab(self.vocab_size)
        if self.teacher and self.teacher.vocab_size not in (None, self.vocab_size):
            raise ValueError(
                f"teacher: its vocab_size={self.teacher.vocab_size} is another vocabulary than "
                f"vocab_size={self.vocab_size}: student and teacher need the same tokens"
            )
        check_at_least_one(self, "vocab_size", "d_model", "repeats", "max_length", "vocab_multiple")

    def build(self, key: Key[Array, ""]) -> "Decoder":
        return Decoder(self, rngs=nnx.Rngs(key))

    @property
    def stacks(self) -> dict[str, Stack]:
        """The stacks by name, in the order of the forward pass."""
        first = {"first": shortest(self.first)} if self.first else {}
        return first | {"blocks": Stack(self.pattern, self.repeats)}

    def scans(self, stack: Stack, *, one_cpu: bool) -> bool:
        """Return whether the repeats of a stack run in a scan, on a mesh of one CPU or on another.

        By default repeats are unrolled on one CPU, where the copies of a scan cost the most, if the program stays small
        and no remat policy needs the scan.
        """
        if self.scan is not None:
            return self.scan
        return not one_cpu or self.remat.needs_scan or not stack.is_shallow

    @property
    def blocks(self) -> tuple[BlockConfig, ...]:
        """The blocks of all layers."""
        return self.first + self.pattern * self.repeats

    @property
    def named_blocks(self) -> dict[str, BlockConfig]:
        """The blocks by the keys that configure them, such as `pattern[0]`."""
        keys = {"first": self.first, "pattern": self.pattern}
        return {f"{key}[{i}]": block for key, blocks in keys.items() for i, block in enumerate(blocks)}

    @property
    def layers(self) -> int:
        return len(self.blocks)

    @property
    def causal(self) -> bool:
        """Whether a token reads those before it alone. Other models fill in masked tokens, and generate nothing."""
        return all(block.mixer.causal for block in self.named_blocks.values())

    @property
    def task_count(self) -> int | None:
        """The number of tasks that its layers, or those of its teacher, tell apart; None where none reads a task."""
        counts = [block.mlp.task_count for block in self.named_blocks.values()]
        counts += [self.teacher.model.task_count] if self.teacher and self.teacher.model else []
        return min((count for count in counts if count is not None), default=None)

    @property
    def vocab_rows(self) -> int:
        """The rows of the tables of the vocabulary."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def parameter_count(self) -> int:
        """The number of parameters, trained or frozen, without those of a teacher."""
        numbers = _counts(self)
        return numbers.parameters + numbers.frozen

    @property
    def active_parameter_count(self) -> int:
        """The number of parameters that a token uses, in the mean: of a mixture, its own experts alone."""
        numbers = _counts(self)
        return numbers.active + numbers.frozen_active

    def flops_per_token(self, length: int) -> float:
        """Return the FLOPs of a token, forward and backward, without recomputation.

        They are 6 for each active parameter that multiplies (the head included, look-ups not; 4 for a frozen one), and
        those of mixing along the length: for attention 12 a head dimension for every key that a query sees. As in
        Kaplan et al. (2020), arXiv:2001.08361, section 2.1, but causal attention counts only the keys that are seen,
        half of all.
        A teacher runs forward alone, a third.
        """
        tied_head = self.head.tied * self.vocab_rows * self.d_model
        mixing = sum(block.mixing_flops(length) for block in self.blocks)
        numbers = _counts(self)
        taught = 0.0
        if self.teacher and self.teacher.model:
            taught = self.teacher.members * self.teacher.model.flops_per_token(length) / 3
        return 6.0 * (numbers.multiplying + tied_head) + 4.0 * numbers.frozen_multiplying + mixing + taught


def context_of(batch: Batch, keys: Keys | None, taps: Collection[str] = ()) -> TokenContext:
    """Return the TokenContext of a batch of whole sequences."""
    return TokenContext(
        positions=batch.positions,
        segment_ids=batch.segment_ids,
        key_positions=batch.positions,
        key_segment_ids=batch.segment_ids,
        keys=keys,
        taps=dict.fromkeys(taps),
        tokens=batch.tokens,
        tasks=batch.tasks,
    )


class Pattern(Layer):
    """The blocks of one repeat of a stack."""

    def __init__(self, config: DecoderConfig, blocks: tuple[BlockConfig, ...], *, rngs: nnx.Rngs):
        self.blocks = nnx.List(
            [b.build(config.d_model, norm=config.norm, dropout=config.dropout, rngs=rngs) for b in blocks]
        )

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext, state: tuple) -> Out:
        """Run the blocks one after another. `state` has one for each; counts and taps are nested by their index."""
        states: list[Any] = []
        sums: dict[str, Sums] = {}
        taps: dict[str, Mapping[str, Any]] = {}
        for i, block in enumerate(self.blocks):
            x, new_state, sums[str(i)], tapped = block(x, context.in_layer(i), state[i])
            states.append(new_state)
            taps |= {str(i): tapped} if tapped else {}
        return Out(x, tuple(states), joined(**sums), taps)

    def update_buffers(self, counts: Mapping[str, Any]) -> None:
        for i, block in enumerate(self.blocks):
            block.update_buffers(counts.get(str(i), {}))

    def report(self, counts: Mapping[str, Any]) -> dict[str, Float[Array, ""]]:
        return greatest(self.blocks[int(i)].report(own) for i, own in counts.items())


class Decoder(nnx.Module):
    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
        self.config = c = config
        self.embedding = Embedding(c.vocab_rows, c.d_model, rngs=rngs)
        self.of_embedding = attach(self, c.embedding.build(c.d_model, c.max_length, norm=c.norm, rngs=rngs))
        self.stacks = nnx.Dict({name: _stacked(c, *stack, rngs=rngs) for name, stack in c.stacks.items()})
        if c.sharing:
            share(self.stacks["blocks"], c.sharing, c.repeats)
        self.final_norm = None if c.pattern[-1].join.normalises_stream else c.norm.build(c.d_model)
        if c.head.linear:
            width, vocab = ((c.d_model, "embed"),), ((c.vocab_rows, "vocab"),)
            self.output = c.head.linear.build(width, vocab, outputs_first=True, rngs=rngs)
        self.of_head = attach(self, c.head.build(c.d_model, c.vocab_rows, norm=c.norm, rngs=rngs))
        for path in flatten_dict(split(self)[1].buffers):
            if not {"mixer", "mlp"}.intersection(path):
                raise ValueError(f"buffer {'.'.join(map(str, path))}: nothing replaces one outside of a mixer or mlp")
        freeze_others(self, c.trainable)
        self.teacher = frozen_teacher(c.teacher, rngs) if c.teacher and c.teacher.members else None

    def axes(self) -> ModelState:
        """Return the facts about every variable."""
        stacked = {name: jax.tree.map(Axes.stacked, axes_of(stack)) for name, stack in self.stacks.items()}
        axes = in_stacks(axes_of(self), stacked)
        return axes if self.teacher is None else taught(axes, self.teacher.axes())

    def __call__(self, batch: Batch, keys: Keys | None = None) -> Float[Array, "B L W"]:
        """Return float32 logits of whole sequences."""
        return self.head.logits(self.hidden(batch, keys).y)

    def hidden(self, batch: Batch, keys: Keys | None = None, taps: Collection[str] = ()) -> Out:
        """Return the hidden states that the head reads, the sums of all layers, and the taps, stacked over repeats.

        `taps` are the names of the values to return of each block: block_input, mixer_output, mlp_output.
        """
        if batch.tokens.shape[1] > self.config.max_length:
            raise ValueError(
                f"sequence of {batch.tokens.shape[1]} tokens: the model's max_length is {self.config.max_length}"
            )
        context = context_of(batch, keys, taps)
        x = self.embed(batch.tokens, context)
        return self.run_blocks(x, context, self.no_states())

    def no_states(self) -> dict[str, tuple[None, ...]]:
        return {name: (None,) * len(blocks) for name, (blocks, _) in self.config.stacks.items()}

    def initial_states(self, batch: int, length: int) -> dict[str, Any]:
        """Return empty decoding states for `length` tokens, by stack and stacked over its repeats."""
        dtype = jnp.dtype(self.config.compute_dtype)

        def of_stack(name: str, repeats: int):
            one = tuple(block.initial_state(batch, length, dtype) for block in self.stacks[name].blocks)
            return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[None], (repeats, *leaf.shape)), one)

        return {name: of_stack(name, repeats) for name, (_, repeats) in self.config.stacks.items()}

    def embed(self, tokens: Int[Array, "B L"], context: TokenContext) -> Float[Array, "B L D"]:
        c = self.config
        x = look_up(self.embedding.table[...], tokens, c.compute_dtype)
        x = c.embedding(x, tokens, context, attached(self, self.of_embedding))
        x = dropout(x, c.dropout, fold_in(context.keys, c.repeats), site=0)
        return constrain(x, "batch", "residual_length", None)

    def run_blocks(self, x: Float[Array, "B L D"], context: TokenContext, states: Mapping[str, Any]) -> Out:
        """Run all stacks. Return the hidden states, the new decoding states, the sums and the taps."""
        outs: dict[str, Out] = {}
        for name in self.config.stacks:
            # Repeats have the keys 0, 1, ... and the embedding has the next one.
            own = context if name == "blocks" else context.in_layer(self.config.repeats + 1)
            outs[name] = self._run_stack(name, x, own, states[name])
            x = outs[name].y
        sums = joined(**{name: out.sums for name, out in outs.items()})
        taps = {name: out.taps for name, out in outs.items() if out.taps}
        return Out(x, {name: out.state for name, out in outs.items()}, sums, taps)

    def _run_stack(self, name: str, x: Float[Array, "B L D"], context: TokenContext, states) -> Out:
        """Run all repeats of a stack. Counts and taps stay `[repeats, ...]`."""
        c, axes, pattern = self.config, self.repeat_axes(name), self.pattern(name)

        def repeat(x, inputs):
            index, stored, state = inputs
            stored = whole_repeat(of_repeat(stacked, index) if in_stages else stored, shared)
            y, *others = pattern(gather(stored, axes, c.compute_dtype), x, context.in_layer(index), state)
            return y, others

        # Gradients of shared parameters are added up over the repeats, in float32.
        stacked, shared = own_and_shared(split(self.stacks[name])[1], axes)
        own_axes, stack = own_and_shared(axes, axes)[0], c.stacks[name]
        scans = c.scans(stack, one_cpu=on_one_cpu())
        stacked = stacked._replace(params=narrow_gradients(stacked.params, own_axes.params, c.compute_dtype))
        in_stages = axis_size("repeats") > 1
        xs = (jnp.arange(stack.repeats), None if in_stages else stacked, states)
        # Over several devices, what is recomputed might be exchanged again.
        body = c.remat.in_scan(repeat) if scans and on_one_device() else c.remat.wrap(repeat)
        y, (states, sums, taps) = jax.lax.scan(body, x, xs, unroll=1 if scans else stack.repeats)
        return Out(y, states, over_repeats(sums), taps)

    def pattern(self, name: str = "blocks") -> Callable[..., Out]:
        """Return one repeat of a stack as a pure function of its gathered arrays, (model state, x, context, states)."""
        graph, _ = split(self.stacks[name])
        return lambda state, x, context, states: merge(graph, state)(x, context, states)

    def repeat_axes(self, name: str = "blocks") -> ModelState:
        """Return the facts about the variables of one repeat of a stack."""
        return axes_of(self.stacks[name])

    def updated_buffers(self, counts: Mapping[str, Any]) -> ParamTree:
        """Return the new buffers, which the layers compute from the counts of a whole step."""

        def of_stack(name: str) -> ModelState:
            graph, stack = split(self.stacks[name])
            stacked, shared = own_and_shared(stack, self.repeat_axes(name))

            def one(state: ModelState, counts: Mapping[str, Any]) -> ParamTree:
                pattern = merge(graph, whole_repeat(state, shared))
                pattern.update_buffers(counts)
                return jax.tree.map(lambda new, old: new.astype(old.dtype), split(pattern)[1].buffers, state.buffers)

            return ModelState({}, {}, jax.vmap(one)(stacked, counts.get(name, {})))

        return in_stacks(split(self)[1], {name: of_stack(name) for name in self.stacks}).buffers

    def reported(self, counts: Mapping[str, Any]) -> dict[str, Float[Array, ""]]:
        """Return what a step shows of the counts of all layers."""

        def of_stack(name: str, own: Any) -> dict[str, Float[Array, ""]]:
            of_repeats = jax.vmap(merge(*split(self.stacks[name])).report)(own)
            return {key: jnp.max(numbers) for key, numbers in of_repeats.items()}

        return greatest(of_stack(name, own) for name, own in counts.items())

    @property
    def head(self) -> Head:
        """The head, which makes logits or cross-entropies of hidden states."""
        c = self.config
        table = self.output.dense() if c.head.linear else self.embedding.table[...]
        words = c.vocab_size if c.vocab_rows > c.vocab_size else None
        norm = self.final_norm if self.final_norm is not None else unchanged
        return c.head(Head(norm, table, HEAD, c.compute_dtype, words=words), attached(self, self.of_head))


def _stacked(config: DecoderConfig, blocks: tuple[BlockConfig, ...], repeats: int, *, rngs: nnx.Rngs) -> Pattern:
    return nnx.vmap(lambda r: Pattern(config, blocks, rngs=r))(rngs.split(repeats))


def frozen_teacher(teacher: Teacher, rngs: nnx.Rngs) -> Decoder | Members:
    """Return the model of a teacher, all of it frozen, or its models."""

    def one(rngs: nnx.Rngs) -> Decoder:
        if teacher.model is None:
            raise ValueError(f"teacher={teacher!r}: its model is not known; give its `model`")
        model = Decoder(teacher.model, rngs=rngs)
        freeze_all(model)
        return model

    return one(rngs) if teacher.members == 1 else Members(one, teacher.members, rngs=rngs)


class AbstractModel(NamedTuple):
    """A model without values: its structure, the shapes of its arrays, and the facts about them."""

    graph: nnx.GraphDef
    shapes: ModelState
    axes: ModelState


@functools.lru_cache(maxsize=16)
def _counts(config: DecoderConfig) -> Counts:
    _, shapes, axes = abstract_model(replace(config, teacher=None))
    return counts(shapes, axes)


def abstract_model(config: DecoderConfig) -> AbstractModel:
    model = nnx.eval_shape(lambda: config.build(jax.random.key(0)))
    return AbstractModel(*split(model), model.axes())
