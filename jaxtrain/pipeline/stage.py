"""What one stage does in a tick: arrivals, F, B, W and the exchanges, over its chunks and buffers.

F, B and W are loops over the repeats of a chunk. With nothing to do a stage runs no round, and for a short chunk fewer
rounds than for a long one. So no branch differs by stage, and the loops update buffers in place. All of this runs
inside regions that are manual over the stages, so every array here is one stage's own.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxtrain.fully_sharded import scatter_gradients
from jaxtrain.pipeline.repeat import Repeat
from jaxtrain.pipeline.residuals import Residuals
from jaxtrain.pipeline.slots import Arrays, Tree, at, put, put_all, put_if
from jaxtrain.pipeline.stages import shift
from jaxtrain.pipeline.tick_program import Arrivals, Backward, Forward, Target, TickProgram, Weight
from jaxtrain.shapes import ModelState
from jaxtrain.sharding import constrain


class Buffers(NamedTuple):
    """The arrays that a stage carries from tick to tick.

    Outside of the regions the first axis has the rows of all stages, one stage after another. The mailboxes, `inputs`
    and `gradients`, have one slot more, where writes to slot -1 go. A slot of the other buffers has a row for each
    repeat of the longest chunk. Slots and repeats share one axis: if they were two axes, one of length one could have
    another layout for the writer than for the reader, and XLA would copy the whole buffer in every tick.
    """

    inputs: jax.Array  # [slots + 1, ...]
    gradients: jax.Array  # [slots + 1, ...]
    residuals: Arrays  # [slots * longest, ...], or [slots, ...] where only the input of a chunk is stored
    deferred: tuple[Arrays, Arrays]  # [slots * longest, ...]: residuals that B passes on to W, and what B computed
    weight_gradients: Tree  # [held * longest, ...]
    sums: Tree  # of the repeats, [held * longest, ...]
    from_previous: jax.Array  # [payloads, ...]
    from_next: jax.Array


class Chunks(NamedTuple):
    """The repeats of a stage, the index of the first repeat of each chunk it holds, and the length of each chunk."""

    repeats: ModelState
    starts: jax.Array
    lengths: jax.Array


class Passed(NamedTuple):
    """The shapes of what one repeat's units pass on: from F to B, from B to W, and out of F."""

    residuals: Arrays
    deferred: Arrays
    sums: Tree


def empty_buffers(
    program: TickProgram, stored: Residuals, weights: Tree, x: jax.Array, passed: Passed, *, poison: bool
) -> Buffers:
    """Return the buffers of all stages, zeros or NaN, for these weights and what a repeat's units pass on."""
    residuals, deferred = passed.residuals, passed.deferred
    stages, held, longest, *_ = jax.tree.leaves(weights)[0].shape
    slots, payloads = program.slots, program.payloads

    def sums(weights: jax.Array) -> jax.Array:
        return jnp.zeros((stages * held * longest, *weights.shape[3:]), jnp.float32)

    def empty(count: int, shape: tuple[int, ...], dtype) -> jax.Array:
        return jnp.full((stages * count, *shape), _nothing(dtype, poison), dtype)

    def each(count: int, values: Tree) -> Tree:
        return jax.tree.map(lambda value: empty(count, value.shape, value.dtype), values)

    return Buffers(
        inputs=empty(slots.inputs + 1, x.shape, x.dtype),
        gradients=empty(slots.gradients + 1, x.shape, x.dtype),
        residuals=each(slots.residuals * stored.rows(longest), stored.row(x, residuals)),
        deferred=each(slots.deferred * longest, (stored.deferred(residuals), deferred)),
        weight_gradients=jax.tree.map(sums, weights),
        sums=jax.tree.map(lambda s: jnp.zeros((stages * held * longest, *s.shape), s.dtype), passed.sums),
        from_previous=empty(payloads.next, x.shape, x.dtype),
        from_next=empty(payloads.previous, x.shape, x.dtype),
    )


class Stage:
    """A stage's part of each tick. `gather` makes one repeat's weights whole; `repeat` has its units."""

    def __init__(
        self,
        program: TickProgram,
        stored: Residuals,
        repeat: Repeat,
        gather: Callable,
        axes: dict,
        *,
        longest: int,
        poison: bool,
    ):
        self.program, self.stored, self.repeat, self.longest, self.poison = program, stored, repeat, longest, poison
        self.gather, self.axes = gather, axes

    def _row(self, slot: jax.Array, repeat: jax.Array | int) -> jax.Array:
        """Return the row of a repeat in a slot."""
        return slot * self.longest + repeat

    def arrive_and_forward(self, buffers: Buffers, own, shared) -> tuple[Buffers, jax.Array]:
        """Run the first region of a tick: arrivals and F. Return the buffers and the output of F."""
        chunks, arrivals, row = own
        embedded, data = shared
        buffers = self._arrive(buffers, arrivals)
        x = jnp.where(row.input < 0, embedded[row.replica], buffers.inputs[row.input])
        x = constrain(x, "batch", "residual_length", None)
        buffers = self._clear(buffers, inputs=row.input)
        data, start = at(data, row.microbatch), chunks.starts[row.held]

        def repeat(i, carry):
            x, slots, sums = carry
            x, added, residuals = self.repeat.forward(*self._arguments(chunks, row.held, i, data, start), x)
            slots = self.stored.store(slots, residuals, self._row(row.residual, i))
            return x, slots, _add(sums, added, self._row(row.held, i))

        slots = self.stored.store_input(buffers.residuals, x, row.residual)
        y, slots, sums = jax.lax.fori_loop(0, _length(chunks, row), repeat, (x, slots, buffers.sums))
        return buffers._replace(residuals=slots, sums=sums), y

    def _arguments(
        self, chunks: Chunks, held: jax.Array, i: jax.Array, data: Tree, start: jax.Array
    ) -> tuple[Tree, Tree]:
        """Return the arguments of a repeat but x: its gathered weights, and what it is not differentiated in."""
        own = self.gather(chunks, held, i)
        return own.params, (data, start + i, own.frozen, own.buffers)

    def _arrive(self, buffers: Buffers, row: Arrivals[jax.Array]) -> Buffers:
        """Write what the neighbours sent into the mailboxes. Of two payloads the first is an activation."""
        inputs, gradients = buffers.inputs, buffers.gradients
        if len(buffers.from_previous):
            inputs = put(inputs, buffers.from_previous[0], row.input_from_previous)
            gradients = put(gradients, buffers.from_previous[-1], row.gradient_from_previous)
        if len(buffers.from_next):
            inputs = put(inputs, buffers.from_next[0], row.input_from_next)
            gradients = put(gradients, buffers.from_next[-1], row.gradient_from_next)
        return buffers._replace(inputs=inputs, gradients=gradients)

    def backward_and_send(self, buffers: Buffers, own, shared) -> tuple[Buffers, jax.Array]:
        """Run the second region of a tick: B, W and the exchanges. Return the buffers and the result of B."""
        chunks, y, forward, from_head, backward, weight = own
        dhidden, data = shared
        buffers = buffers._replace(gradients=put(buffers.gradients, dhidden[from_head.replica], from_head.slot))
        buffers, dx = self._backward(buffers, chunks, data, backward)
        for slot in range(weight.microbatch.shape[0]):
            buffers = self._weight(buffers, chunks, data, Weight(*(column[slot] for column in weight)))
        buffers = buffers._replace(
            inputs=put(buffers.inputs, y, jnp.where(forward.target == Target.HERE, forward.slot, -1)),
            gradients=put(buffers.gradients, dx, jnp.where(backward.target == Target.HERE, backward.slot, -1)),
        )
        return self._send(buffers, y, forward.target, dx), dx

    def _backward(
        self, buffers: Buffers, chunks: Chunks, data: Tree, row: Backward[jax.Array]
    ) -> tuple[Buffers, jax.Array]:
        """Run B of one chunk, last repeat first, with W if it is fused."""
        dy, length = buffers.gradients[row.gradient], _length(chunks, row)
        dy = constrain(dy, "batch", "residual_length", None)
        buffers = self._clear(buffers, gradients=row.gradient)
        data, start = at(data, row.microbatch), chunks.starts[row.held]

        recompute = functools.partial(self._recompute, chunks, data, row, dy.shape)
        slots, first = self.stored.load(buffers.residuals, row.residual, self._row(row.residual, 0), recompute)

        def fused(i, carry):
            dy, sums = carry
            i = length - 1 - i
            arguments, residuals = self._arguments(chunks, row.held, i, data, start), at(slots, first + i)
            dx, dweights = self.repeat.backward(*arguments, residuals, dy)
            return dx, self._add_gradient(sums, dweights, self._row(row.held, i))

        def split(i, carry):
            dy, (passed, deferred) = carry
            i = length - 1 - i
            arguments, residuals = self._arguments(chunks, row.held, i, data, start), at(slots, first + i)
            dx, made = self.repeat.input_gradient(*arguments, residuals, dy)
            at_repeat = self._row(row.deferred, i)
            return dx, (put_all(passed, self.stored.deferred(residuals), at_repeat), put_all(deferred, made, at_repeat))

        dx, sums, deferred, kinds = dy, buffers.weight_gradients, buffers.deferred, self.program.backward.fused
        if (kinds == 1).any():
            dx, sums = jax.lax.fori_loop(0, jnp.where(row.fused == 1, length, 0), fused, (dx, sums))
            buffers = self._clear(buffers, residuals=jnp.where(row.fused == 1, row.residual, -1))
        if (kinds == 0).any():
            dx, deferred = jax.lax.fori_loop(0, jnp.where(row.fused == 0, length, 0), split, (dx, deferred))
        return buffers._replace(weight_gradients=sums, deferred=deferred), dx

    def _recompute(
        self, chunks: Chunks, data: Tree, row: Backward[jax.Array], shape: tuple[int, ...], x: jax.Array
    ) -> Arrays:
        """Recompute the residuals of a chunk's repeats from its input; the last repeat runs only what they need."""
        length, start, x = _length(chunks, row), chunks.starts[row.held], x.reshape(shape)

        def arguments(i, x):
            return *self._arguments(chunks, row.held, i, data, start), x

        def repeat(i, carry):
            x, residuals = carry
            x, _, made = self.repeat.forward(*arguments(i, x))
            return x, put_all(residuals, made, i)

        def last(i, carry):
            x, residuals = carry
            return x, put_all(residuals, self.repeat.residuals(*arguments(i, x)), i)

        def empty(like):
            return jnp.full((self.longest, *like.shape), _nothing(like.dtype, self.poison), like.dtype)

        residuals = jax.tree.map(empty, jax.eval_shape(self.repeat.residuals, *arguments(0, x)))
        carry = jax.lax.fori_loop(0, length - 1, repeat, (x, residuals))
        return jax.lax.fori_loop(jnp.maximum(length - 1, 0), length, last, carry)[1]

    def _weight(self, buffers: Buffers, chunks: Chunks, data: Tree, row: Weight[jax.Array]) -> Buffers:
        """Run W of one chunk."""
        data, start = at(data, row.microbatch), chunks.starts[row.held]

        def repeat(i, sums):
            passed, deferred = at(buffers.deferred, self._row(row.deferred, i))
            residuals = self.stored.load_deferred(buffers.residuals, self._row(row.residual, i), passed)
            dweights = self.repeat.weight_gradient(
                *self._arguments(chunks, row.held, i, data, start), residuals, deferred
            )
            return self._add_gradient(sums, dweights, self._row(row.held, i))

        sums = jax.lax.fori_loop(0, _length(chunks, row), repeat, buffers.weight_gradients)
        return self._clear(buffers._replace(weight_gradients=sums), residuals=row.residual, deferred=row.deferred)

    def _send(self, buffers: Buffers, y: jax.Array, target: jax.Array, dx: jax.Array) -> Buffers:
        """Exchange with both neighbours, whether there is something to send or not."""
        payloads, ring = self.program.payloads, self.program.ring

        def exchange(count: int, direction: Target, by: int, unused: jax.Array) -> jax.Array:
            if not count:
                return unused
            both = [y, dx] if count == 2 else [jnp.where(target == direction, y, dx)]
            return shift(jnp.stack(both), by, ring=ring)

        return buffers._replace(
            from_previous=exchange(payloads.next, Target.NEXT, 1, buffers.from_previous),
            from_next=exchange(payloads.previous, Target.PREVIOUS, -1, buffers.from_next),
        )

    def _add_gradient(self, sums: Tree, dweights: Tree, row: jax.Array) -> Tree:
        return _add(sums, scatter_gradients(dweights, self.axes), row)

    def _clear(self, buffers: Buffers, **slots) -> Buffers:
        """Poison slots that were read for the last time."""
        if not self.poison:
            return buffers

        def cleared(buffer, slot, rows):
            slots = buffer.reshape(-1, rows, *buffer.shape[1:])
            filler = jnp.full(slots.shape[1:], _nothing(buffer.dtype, True), buffer.dtype)
            return put_if(slots, filler, slot).reshape(buffer.shape)

        rows = {"residuals": self.stored.rows(self.longest), "deferred": self.longest}

        def changed(name, slot):
            clear = functools.partial(cleared, slot=slot, rows=rows.get(name, 1))
            return jax.tree.map(clear, getattr(buffers, name))

        return buffers._replace(**{name: changed(name, slot) for name, slot in slots.items()})


def _add(sums: Tree, added: Tree, row: jax.Array) -> Tree:
    return jax.tree.map(lambda s, a: put(s, s[row] + a.astype(s.dtype), row), sums, added)


def _length(chunks: Chunks, row: Forward[jax.Array] | Backward[jax.Array] | Weight[jax.Array]) -> jax.Array:
    """Return how many repeats to run: 0 if there is nothing to do."""
    return jnp.where(row.microbatch < 0, 0, chunks.lengths[row.held])


def _nothing(dtype: jnp.dtype, poison: bool) -> float:
    """Return the value that fills empty slots: NaN to poison them, else 0."""
    return jnp.nan if poison and jnp.issubdtype(dtype, jnp.inexact) else 0
