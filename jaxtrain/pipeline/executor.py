"""The loop that runs a tick program: loss and gradients of a model cut over the stages of a mesh.

It is one `lax.scan` over ticks; `tick_program` says what a tick is. Each tick has two regions that are manual over the
stages. Around them is what all stages do together, over auto axes and with the vocabulary split over the stages (Yeung
et al., 2024, arXiv:2411.05288): the look-up of a microbatch that enters, the head with its loss and its gradient, and
the gradient of the embedding.

    embed        one microbatch, if one enters                     all stages
    arrive, F    a loop over the repeats of the stage's chunk       each stage
    head         one microbatch, if one passed the last chunk      all stages     (or first, with `late_head`)
    B, W, send   loops over repeats, then two exchanges             each stage
    unembed      one microbatch, if one came back                  all stages

What a stage does is in `stage`. What all stages do together is in a branch that all of them take or skip. The two
exchanges are in no branch and in no loop but the scan. Memory is that of the program's slots, whatever the number of
microbatches. Weight gradients are summed in float32.

Left out: the overlap of the head with F and B of other microbatches, which that paper schedules as passes of their own.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxtrain.fully_sharded import gather, lay_out, narrow
from jaxtrain.pipeline.repeat import Repeat, take_apart
from jaxtrain.pipeline.residuals import Residuals
from jaxtrain.pipeline.slots import Tree, at
from jaxtrain.pipeline.stage import Buffers, Chunks, Passed, Stage, empty_buffers
from jaxtrain.pipeline.stages import Stacking, on_stages, update_on_stages
from jaxtrain.pipeline.tick_program import Arrivals, Backward, Forward, FromHead, TickProgram, Weight
from jaxtrain.shapes import ModelState


class Parts(NamedTuple):
    """What a pipeline needs of a model. `outer` are all parameters but those of the repeats."""

    embed: Callable  # (outer, data) -> x
    repeat: Callable  # a repeat.Apply with data (data, index of the repeat, frozen, buffers); its arrays come gathered
    head: Callable  # (outer, data, x) -> (contribution to the loss, what is summed over microbatches)
    outer_axes: dict
    repeat_axes: ModelState
    compute_dtype: str


class Row(NamedTuple):
    """The tables of the program, and in the scan over them, one tick."""

    forward: Forward[jax.Array]
    from_head: FromHead[jax.Array]
    backward: Backward[jax.Array]
    weight: Weight[jax.Array]
    arrivals: Arrivals[jax.Array]
    embedding: jax.Array
    head: jax.Array
    embedding_gradient: jax.Array


class Totals(NamedTuple):
    """What all stages sum together."""

    sums: Tree
    outer_gradient: Tree


class Carry(NamedTuple):
    """What goes from tick to tick. `y`: with a late head, the outputs of the last F."""

    buffers: Buffers
    totals: Totals
    y: jax.Array | None


class Result(NamedTuple):
    """Sums over all microbatches, of the head and of each repeat (`[repeats, ...]`), and the gradients of the loss."""

    head: Tree
    repeats: Tree
    outer_gradient: Tree
    blocks_gradient: Tree


def value_and_grad(
    parts: Parts,
    program: TickProgram,
    outer: Tree,
    blocks: ModelState,
    data: Tree,
    *,
    residuals: Residuals,
    poison: bool = False,
) -> Result:
    """Return the sums of a model and the gradients of its loss with respect to the parameters.

    The leaves of `data` are `[microbatches, ...]`, those of `blocks` `[repeats, ...]`. With `poison`, empty slots
    hold NaN: before they are written, and after they are read for the last time.
    """
    loop = _Loop(parts, program, outer, blocks, data, residuals, poison)
    (buffers, totals, _), _ = jax.lax.scan(loop.tick, loop.start(), loop.rows)
    gradient = loop.unstack(buffers.weight_gradients)
    return Result(totals.sums, loop.unstack(buffers.sums), totals.outer_gradient, gradient)


def allocated(
    parts: Parts, program: TickProgram, outer: Tree, blocks: ModelState, data: Tree, *, residuals: Residuals
) -> Buffers:
    """Return the shapes of the stages' buffers, with the rows of all stages on the first axis."""
    return jax.eval_shape(
        lambda outer, blocks, data: _Loop(parts, program, outer, blocks, data, residuals, False).start().buffers,
        outer,
        blocks,
        data,
    )


class _Loop:
    """The program and the model, and what a tick does with them."""

    def __init__(
        self,
        parts: Parts,
        program: TickProgram,
        outer: Tree,
        blocks: ModelState,
        data: Tree,
        residuals: Residuals,
        poison: bool,
    ):
        self.repeats = len(jax.tree.leaves(blocks)[0])
        stacking = Stacking(placement=program.placement, repeats=self.repeats)
        self.parts, self.program, self.outer, self.data, self.poison = parts, program, outer, data, poison
        self.stack = stacking.stack
        moved = narrow(blocks, parts.repeat_axes, parts.compute_dtype) if stacking.moves else blocks
        self.chunks = Chunks(self.stack(moved), jnp.asarray(stacking.starts), jnp.asarray(stacking.lengths))
        tables = (program.forward, program.from_head, program.backward, program.weight, program.arrivals)
        shared = (program.embedding, program.head, program.embedding_gradient)
        self.rows = Row(*jax.tree.map(jnp.asarray, (*tables, *shared)))
        self.x = jax.eval_shape(parts.embed, outer, at(data, 0))
        repeat, self.passed = self._units()
        self.chunks_shape = stacking.wanted.shape  # stages, held, longest
        longest = self.chunks_shape[2]
        self.stage = Stage(
            program, residuals, repeat, self._gather, parts.repeat_axes.params, longest=longest, poison=poison
        )

    def _gather(self, chunks: Chunks, held: jax.Array, repeat: jax.Array) -> ModelState:
        """Return one repeat's arrays, gathered along the axes over which they are sharded."""
        # Without the barrier the gather would choose the layout of the whole stack, and XLA would copy the stack.
        own = jax.tree.map(jax.lax.optimization_barrier, at(chunks.repeats, held, repeat))
        return gather(own, self.parts.repeat_axes, self.parts.compute_dtype)

    def _units(self) -> tuple[Repeat, Passed]:
        """Return the units of the repeat, traced in the region they run in, and the shapes they pass on in a stage."""
        repeats = []

        def trace_repeat(chunks, shared):
            data, x = shared
            own = self._gather(chunks, 0, 0)
            weights, data = own.params, (at(data, 0), chunks.starts[0], own.frozen, own.buffers)
            repeats.append(repeat := take_apart(self.parts.repeat, weights, data, x))
            y, sums, residuals = repeat.forward(weights, data, x)
            return Passed(residuals, repeat.input_gradient(weights, data, residuals, y)[1], sums)

        shapes = jax.eval_shape(functools.partial(on_stages, trace_repeat), self.chunks, (self.data, self.x))
        return repeats[0], jax.tree.map(lambda like: jax.ShapeDtypeStruct(like.shape[1:], like.dtype), shapes)

    # -- beginning and end --------------------------------------------------------------------------------------

    def start(self) -> Carry:
        """Return empty buffers and sums."""
        weights = self.chunks.repeats.params
        buffers = empty_buffers(self.program, self.stage.stored, weights, self.x, self.passed, poison=self.poison)
        _, sums = jax.eval_shape(self.parts.head, self.outer, at(self.data, 0), self.x)
        zeros = functools.partial(jax.tree.map, lambda like: jnp.zeros(like.shape, like.dtype))
        y = jnp.zeros((self.program.placement.stages, *self.x.shape), self.x.dtype) if self.program.late_head else None
        return Carry(buffers, Totals(zeros(sums), self._lay_out(zeros(self.outer))), y)

    def unstack(self, sums: Tree) -> Tree:
        """Return sums of each repeat, gradients or others, as `[repeats, ...]`; copies of a repeat are added."""
        if not jax.tree.leaves(sums):
            return sums
        stacked = jax.tree.map(lambda s: s.reshape(*self.chunks_shape, *s.shape[1:]), sums)
        like = jax.tree.map(lambda s: jax.ShapeDtypeStruct((self.repeats, *s.shape[1:]), s.dtype), sums)
        (unstacked,) = jax.linear_transpose(self.stack, like)(stacked)
        return unstacked

    def _lay_out(self, outer: Tree) -> Tree:
        return lay_out(outer, self.parts.outer_axes)

    # -- one tick -----------------------------------------------------------------------------------------------

    def tick(self, carry: Carry, row: Row) -> tuple[Carry, None]:
        buffers, totals, last_y = carry
        embedded = self._embed(row.embedding)
        if last_y is not None:  # a late head
            totals, dy = self._head(totals, row.head, last_y)
        forward = (self.chunks, row.arrivals, row.forward)
        buffers, y = update_on_stages(self.stage.arrive_and_forward, buffers, forward, (embedded, self.data))
        if last_y is None:
            totals, dy = self._head(totals, row.head, y)
        backward = (self.chunks, y, row.forward, row.from_head, row.backward, row.weight)
        buffers, dx = update_on_stages(self.stage.backward_and_send, buffers, backward, (dy, self.data))
        totals = self._unembed(totals, row.embedding_gradient, dx)
        return Carry(buffers, totals, None if last_y is None else y), None

    # -- all stages together ------------------------------------------------------------------------------------

    def _embed(self, microbatches: jax.Array) -> jax.Array:
        """Return the embedded microbatch that enters on each weight copy; zeros where none does."""

        def embed(microbatch):
            return self.parts.embed(self.outer, at(self.data, microbatch))

        def nothing(_):
            return jnp.zeros(self.x.shape, self.x.dtype)

        return jnp.stack([jax.lax.cond(m >= 0, embed, nothing, m) for m in microbatches])

    def _head(self, totals: Totals, microbatches: jax.Array, y: jax.Array) -> tuple[Totals, jax.Array]:
        """Add loss and gradient of the microbatch that passed the last chunk; also return its gradient to y."""

        def loss(outer, hidden, data):
            return self.parts.head(outer, data, hidden)

        def compute(stage, totals, microbatch, y):
            gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
            (douter, dhidden), sums = gradient(self.outer, _of_stage(y, stage), at(self.data, microbatch))
            added = jax.tree.map(jnp.add, totals, Totals(sums, douter))
            return added._replace(outer_gradient=self._lay_out(added.outer_gradient)), dhidden

        def nothing(totals, microbatch, y):
            return totals, jnp.zeros(self.x.shape, self.x.dtype)

        gradients = []
        for replica, home in enumerate(self.program.placement.homes):
            microbatch = microbatches[replica]
            branch = functools.partial(compute, home[-1])
            totals, dhidden = jax.lax.cond(microbatch >= 0, branch, nothing, totals, microbatch, y)
            gradients.append(dhidden)
        return totals, jnp.stack(gradients)

    def _unembed(self, totals: Totals, microbatches: jax.Array, dx: jax.Array) -> Totals:
        """Add the embedding's gradient for the microbatch whose B of chunk 0 ran."""

        def compute(stage, gradient, microbatch, dx):
            embed = functools.partial(self.parts.embed, data=at(self.data, microbatch))
            (douter,) = jax.vjp(embed, self.outer)[1](_of_stage(dx, stage))
            return self._lay_out(jax.tree.map(jnp.add, gradient, douter))

        gradient = totals.outer_gradient
        for replica, home in enumerate(self.program.placement.homes):
            microbatch = microbatches[replica]
            branch = functools.partial(compute, home[0])
            gradient = jax.lax.cond(microbatch >= 0, branch, lambda g, *_: g, gradient, microbatch, dx)
        return totals._replace(outer_gradient=gradient)


def _of_stage(x: jax.Array, stage: int) -> jax.Array:
    """Return one stage's value, on all stages."""
    own = jnp.arange(len(x)).reshape(-1, *(1,) * (x.ndim - 1)) == stage
    return jax.lax.reduce(jnp.where(own, x, 0), jnp.zeros((), x.dtype), jax.lax.add, (0,))
