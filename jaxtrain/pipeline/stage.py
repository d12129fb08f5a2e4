"""What one stage does in a tick: arrivals, F, B, W and the exchanges, over its chunks and buffers.

F, B and W are loops over the layers of a chunk. A stage with nothing to do runs no round, and a short chunk fewer than
a long one: no branch differs by stage, and loops update buffers in place. All of this runs inside regions that are
manual over the stages, so every array here is one stage's own.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxtrain.mesh import constrain, scatter_gradients
from jaxtrain.pipeline.layer import Layer, Tree
from jaxtrain.pipeline.stages import shift
from jaxtrain.pipeline.tick_program import Arrivals, Backward, Forward, Target, TickProgram, Weight


class Buffers(NamedTuple):
    """What a stage keeps from tick to tick. The mailboxes have a slot to spare, where -1 writes.

    A slot of the others has a row for each layer of the longest chunk. Slots and layers share one axis: were they two,
    one of length one could be laid out differently for writer and reader, and the buffer copied whole in every tick.
    """

    inputs: jax.Array  # [slots + 1, ...]
    gradients: jax.Array  # [slots + 1, ...]
    kept: list[jax.Array]  # [slots * longest, ...]
    deferred: list[jax.Array]  # [slots * longest, ...]
    weight_gradients: Tree  # [held * longest, ...]
    from_previous: jax.Array  # [payloads, ...]
    from_next: jax.Array


class Chunks(NamedTuple):
    """The weights of a stage, the first layer of each chunk it holds, and how many layers that has."""

    weights: Tree
    starts: jax.Array
    lengths: jax.Array


def empty_buffers(
    program: TickProgram, weights: Tree, x: jax.Array, kept: Tree, deferred: Tree, *, poison: bool
) -> Buffers:
    """Return the buffers of all stages, zeros or NaN, from the weights and the shapes of what goes between units."""
    stages, held, longest, *_ = jax.tree.leaves(weights)[0].shape
    slots, payloads = program.slots, program.payloads

    def sums(weights: jax.Array) -> jax.Array:
        return jnp.zeros((stages, held * longest, *weights.shape[3:]), jnp.float32)

    def empty(count: int, shape: tuple[int, ...], dtype) -> jax.Array:
        value = jnp.nan if poison and jnp.issubdtype(dtype, jnp.inexact) else 0
        return jnp.full((stages, count, *shape), value, dtype)

    def layers(count: int, values: Tree) -> list[jax.Array]:
        return [empty(count * longest, value.shape[1:], value.dtype) for value in values]

    return Buffers(
        inputs=empty(slots.inputs + 1, x.shape, x.dtype),
        gradients=empty(slots.gradients + 1, x.shape, x.dtype),
        kept=layers(slots.residuals, kept),
        deferred=layers(slots.deferred, deferred),
        weight_gradients=jax.tree.map(sums, weights),
        from_previous=empty(payloads.next, x.shape, x.dtype),
        from_next=empty(payloads.previous, x.shape, x.dtype),
    )


class Stage:
    """A stage's part of each tick. `gather` makes one layer's weights whole; `layer` has its units."""

    def __init__(
        self, program: TickProgram, layer: Layer, gather: Callable, names: dict, *, longest: int, poison: bool
    ):
        self.program, self.layer, self.longest, self.poison = program, layer, longest, poison
        self.gather, self.names = gather, names

    def _row(self, slot: jax.Array, layer: jax.Array) -> jax.Array:
        """Return where a slot has a layer."""
        return slot * self.longest + layer

    def arrive_and_forward(self, own, shared) -> tuple[Buffers, jax.Array]:
        buffers, chunks, arrivals, row = own
        embedded, data = shared
        buffers = self._arrive(buffers, arrivals)
        x = jnp.where(row.input < 0, embedded[row.replica], buffers.inputs[row.input])
        x = constrain(x, "batch", "residual_length", None)
        buffers = self._clear(buffers, inputs=row.input)
        data, start = at(data, row.microbatch), chunks.starts[row.held]

        def layer(i, carry):
            x, kept = carry
            x, values = self.layer.forward(self.gather(chunks, row.held, i), (data, start + i), x)
            return x, put_all(kept, values, self._row(row.residual, i))

        y, kept = jax.lax.fori_loop(0, _length(chunks, row), layer, (x, buffers.kept))
        return buffers._replace(kept=kept), y

    def _arrive(self, buffers: Buffers, row: Arrivals) -> Buffers:
        """Put what the neighbours sent into the mailboxes: an activation first, if it can be both."""
        inputs, gradients = buffers.inputs, buffers.gradients
        if len(buffers.from_previous):
            inputs = put(inputs, buffers.from_previous[0], row.input_from_previous)
            gradients = put(gradients, buffers.from_previous[-1], row.gradient_from_previous)
        if len(buffers.from_next):
            inputs = put(inputs, buffers.from_next[0], row.input_from_next)
            gradients = put(gradients, buffers.from_next[-1], row.gradient_from_next)
        return buffers._replace(inputs=inputs, gradients=gradients)

    def backward_and_send(self, own, shared) -> tuple[Buffers, jax.Array]:
        buffers, chunks, y, forward, backward, weight = own
        dhidden, data = shared
        from_head = jnp.where(forward.target == Target.END, forward.slot, -1)
        buffers = buffers._replace(gradients=put(buffers.gradients, dhidden[forward.replica], from_head))
        buffers, dx = self._backward(buffers, chunks, data, backward)
        for slot in range(weight.microbatch.shape[0]):
            buffers = self._weight(buffers, chunks, data, Weight(*(column[slot] for column in weight)))
        buffers = buffers._replace(
            inputs=put(buffers.inputs, y, jnp.where(forward.target == Target.HERE, forward.slot, -1)),
            gradients=put(buffers.gradients, dx, jnp.where(backward.target == Target.HERE, backward.slot, -1)),
        )
        return self._send(buffers, y, forward.target, dx), dx

    def _backward(self, buffers: Buffers, chunks: Chunks, data: Tree, row: Backward) -> tuple[Buffers, jax.Array]:
        """B of one chunk, last layer first, with W or without."""
        dy, length = buffers.gradients[row.gradient], _length(chunks, row)
        dy = constrain(dy, "batch", "residual_length", None)
        buffers = self._clear(buffers, gradients=row.gradient)
        data, start = at(data, row.microbatch), chunks.starts[row.held]

        def fused(i, carry):
            dy, sums = carry
            i = length - 1 - i
            weights, kept = self.gather(chunks, row.held, i), at(buffers.kept, self._row(row.residual, i))
            dx, dweights = self.layer.backward(weights, (data, start + i), kept, dy)
            return dx, self._add(sums, dweights, self._row(row.held, i))

        def split(i, carry):
            dy, deferred = carry
            i = length - 1 - i
            weights, kept = self.gather(chunks, row.held, i), at(buffers.kept, self._row(row.residual, i))
            dx, values = self.layer.input_gradient(weights, (data, start + i), kept, dy)
            return dx, put_all(deferred, values, self._row(row.deferred, i))

        dx, sums, deferred, kinds = dy, buffers.weight_gradients, buffers.deferred, self.program.backward.fused
        if (kinds == 1).any():
            dx, sums = jax.lax.fori_loop(0, jnp.where(row.fused == 1, length, 0), fused, (dx, sums))
            buffers = self._clear(buffers, kept=jnp.where(row.fused == 1, row.residual, -1))
        if (kinds == 0).any():
            dx, deferred = jax.lax.fori_loop(0, jnp.where(row.fused == 0, length, 0), split, (dx, deferred))
        return buffers._replace(weight_gradients=sums, deferred=deferred), dx

    def _weight(self, buffers: Buffers, chunks: Chunks, data: Tree, row: Weight) -> Buffers:
        """W of one chunk."""
        data, start = at(data, row.microbatch), chunks.starts[row.held]

        def layer(i, sums):
            weights, kept = self.gather(chunks, row.held, i), at(buffers.kept, self._row(row.residual, i))
            deferred = at(buffers.deferred, self._row(row.deferred, i))
            dweights = self.layer.weight_gradient(weights, (data, start + i), kept, deferred)
            return self._add(sums, dweights, self._row(row.held, i))

        sums = jax.lax.fori_loop(0, _length(chunks, row), layer, buffers.weight_gradients)
        return self._clear(buffers._replace(weight_gradients=sums), kept=row.residual, deferred=row.deferred)

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

    def _add(self, sums: Tree, dweights: Tree, row: jax.Array) -> Tree:
        dweights = scatter_gradients(dweights, self.names)
        return jax.tree.map(lambda s, g: put(s, s[row] + g.astype(s.dtype), row), sums, dweights)

    def _clear(self, buffers: Buffers, **slots) -> Buffers:
        """Poison slots that were read for the last time."""
        if not self.poison:
            return buffers

        def cleared(buffer, slot, rows):
            slots = buffer.reshape(-1, rows, *buffer.shape[1:])
            hole = jnp.full(slots.shape[1:], jnp.nan if jnp.issubdtype(buffer.dtype, jnp.inexact) else 0, buffer.dtype)
            return put(slots, jnp.where(slot < 0, slots[slot], hole), slot).reshape(buffer.shape)

        def changed(name, slot):
            rows = self.longest if name in ("kept", "deferred") else 1
            return jax.tree.map(functools.partial(cleared, slot=slot, rows=rows), getattr(buffers, name))

        return buffers._replace(**{name: changed(name, slot) for name, slot in slots.items()})


def _length(chunks: Chunks, row: Forward | Backward | Weight) -> jax.Array:
    """Layers to run: none where there is nothing to do."""
    return jnp.where(row.microbatch < 0, 0, chunks.lengths[row.held])


def at(tree: Tree, *index) -> Tree:
    """Read one entry of the leading axes."""
    return jax.tree.map(lambda x: x[index], tree)


def put(buffer: jax.Array, value: jax.Array, index: jax.Array) -> jax.Array:
    """Write one entry of the leading axis, in place."""
    index = jnp.where(index < 0, index + len(buffer), index)
    return jax.lax.dynamic_update_slice(buffer, value[None], (index, *(0,) * value.ndim))


def put_all(buffers: list[jax.Array], values: list[jax.Array], index: jax.Array) -> list[jax.Array]:
    return [put(buffer, value, index) for buffer, value in zip(buffers, values, strict=True)]
