"""The loop that runs a tick program: loss and gradients of a model cut over the stages of a mesh.

One `lax.scan` over ticks; `tick_program` says what a tick is. Each has two regions that are manual over the stages, and
between them what all stages do together, left to the compiler, with the vocabulary split over the stages (Yeung et al.,
2024, arXiv:2411.05288): the look-up of a microbatch that enters, the head with its loss and its gradient, and the
gradient of the embedding.

    embed        one microbatch, if one enters                     all stages
    arrive, F    a loop over the layers of the stage's chunk       each stage
    head         one microbatch, if one passed the last chunk      all stages
    B, W, send   loops over layers, then two exchanges             each stage
    unembed      one microbatch, if one came back                  all stages

A stage with nothing to do runs a loop of no rounds, and a short chunk one of fewer: no branch differs by stage, buffers
are updated in place, and the exchanges are outside of all loops but the one over ticks. What all stages do together is
skipped by a branch that all take alike. Memory is the program's slots whatever the number of microbatches. Gradients of
weights are summed in float32.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxtrain.mesh import constrain, gather, lay_out, narrow, scatter_gradients
from jaxtrain.pipeline.layer import Layer, take_apart
from jaxtrain.pipeline.stages import Stacking, on_stages, shift
from jaxtrain.pipeline.tick_program import Arrivals, Backward, Forward, Target, TickProgram, Weight

Tree = Any  # of arrays


class Parts(NamedTuple):
    """What a pipeline needs of a model. `outer` are all parameters but those of the repeats."""

    embed: Callable  # (outer, data) -> x
    layer: Callable  # (gathered weights of a repeat, (data, its index), x) -> x
    head: Callable  # (outer, data, x) -> (loss, sums)
    outer_names: dict
    layer_names: dict
    compute_dtype: str


class Buffers(NamedTuple):
    """What a stage keeps from tick to tick. The mailboxes have a slot to spare, where -1 writes."""

    inputs: jax.Array  # [slots + 1, ...]
    gradients: jax.Array  # [slots + 1, ...]
    kept: list[jax.Array]  # [slots, longest, ...]
    deferred: list[jax.Array]  # [slots, longest, ...]
    weight_gradients: Tree  # [held, longest, ...]
    from_previous: jax.Array  # [payloads, ...]
    from_next: jax.Array


class Row(NamedTuple):
    """The tables of the program, and in the scan over them, one tick."""

    forward: Forward
    backward: Backward
    weight: Weight
    arrivals: Arrivals
    embedding: jax.Array
    head: jax.Array
    embedding_gradient: jax.Array


class Chunks(NamedTuple):
    """The weights of a stage, the first layer of each chunk it holds, and how many layers that has."""

    weights: Tree
    starts: jax.Array
    lengths: jax.Array


class Totals(NamedTuple):
    """What all stages sum together."""

    sums: Tree
    outer_gradient: Tree


def value_and_grad(
    parts: Parts, program: TickProgram, outer: Tree, blocks: Tree, data: Tree, *, poison: bool = False
) -> tuple[Tree, Tree, Tree]:
    """Return the sums of the head over all microbatches, and the gradients of their loss to `outer` and `blocks`.

    The leaves of `data` are `[microbatches, ...]`, those of `blocks` `[repeats, ...]`. With `poison`, slots that hold
    nothing are NaN, before they are written and after they were read for the last time.
    """
    loop = _Loop(parts, program, outer, blocks, data, poison)
    (buffers, totals), _ = jax.lax.scan(loop.tick, loop.start(), loop.rows)
    return totals.sums, totals.outer_gradient, loop.unstack(buffers.weight_gradients)


def empty_buffers(parts: Parts, program: TickProgram, outer: Tree, blocks: Tree, data: Tree) -> Buffers:
    """Return the shapes of what the stages keep from tick to tick, a leading axis of stages on each."""
    return jax.eval_shape(lambda *trees: _Loop(parts, program, *trees, False).start()[0], outer, blocks, data)


def _at(tree: Tree, *index) -> Tree:
    """Read one entry of the leading axes."""
    return jax.tree.map(lambda x: x[index], tree)


def _put(buffer: jax.Array, value: jax.Array, *index) -> jax.Array:
    """Write one entry of the leading axes, in place."""
    index = [jnp.where(i < 0, i + size, i) for i, size in zip(index, buffer.shape, strict=False)]
    value = value.reshape((1,) * len(index) + value.shape)
    return jax.lax.dynamic_update_slice(buffer, value, (*index, *(0,) * (buffer.ndim - len(index))))


class _Loop:
    """The program and the model, and what a tick does with them."""

    def __init__(self, parts: Parts, program: TickProgram, outer: Tree, blocks: Tree, data: Tree, poison: bool):
        stacking = Stacking(placement=program.placement, repeats=len(jax.tree.leaves(blocks)[0]))
        self.parts, self.program, self.outer, self.data, self.poison = parts, program, outer, data, poison
        self.stack = stacking.stack
        self.blocks = jax.tree.map(lambda w: jax.ShapeDtypeStruct(w.shape, jnp.float32), blocks)
        moved = narrow(blocks, parts.layer_names, parts.compute_dtype) if stacking.moves else blocks
        self.chunks = Chunks(self.stack(moved), jnp.asarray(stacking.starts), jnp.asarray(stacking.lengths))
        tables = (program.forward, program.backward, program.weight, program.arrivals)
        shared = (program.embedding, program.head, program.embedding_gradient)
        self.rows = jax.tree.map(jnp.asarray, Row(*tables, *shared))
        self.x = jax.eval_shape(parts.embed, outer, _at(data, 0))
        self.layer, self.kept, self.deferred = self._take_apart()

    # -- beginning and end --------------------------------------------------------------------------------------

    def _take_apart(self) -> tuple[Layer, Tree, Tree]:
        """Trace the layer where it will run; also return the shapes of what it keeps and defers."""
        layers = []

        def look(chunks, shared):
            data, x = shared
            weights, data = self._gather(chunks, 0, 0), (_at(data, 0), chunks.starts[0])
            layers.append(layer := take_apart(self.parts.layer, weights, data, x))
            y, kept = layer.forward(weights, data, x)
            return kept, layer.input_gradient(weights, data, kept, y)[1]

        shapes = jax.eval_shape(functools.partial(on_stages, look), self.chunks, (self.data, self.x))
        return layers[0], *shapes

    def start(self) -> tuple[Buffers, Totals]:
        """Return empty buffers and sums."""
        stages, slots, payloads = self.program.placement.stages, self.program.slots, self.program.payloads
        longest = jax.tree.leaves(self.chunks.weights)[0].shape[2]

        def empty(count: int, like, *more: int) -> jax.Array:
            value = jnp.nan if self.poison and jnp.issubdtype(like.dtype, jnp.inexact) else 0
            return jnp.full((stages, count, *more, *like.shape), value, like.dtype)

        def residuals(count: int, shapes: Tree) -> Tree:
            of_stage = (jax.ShapeDtypeStruct(shape.shape[1:], shape.dtype) for shape in shapes)
            return [empty(count, shape, longest) for shape in of_stage]

        buffers = Buffers(
            inputs=empty(slots.inputs + 1, self.x),
            gradients=empty(slots.gradients + 1, self.x),
            kept=residuals(slots.residuals, self.kept),
            deferred=residuals(slots.deferred, self.deferred),
            weight_gradients=jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), self.chunks.weights),
            from_previous=empty(payloads.next, self.x),
            from_next=empty(payloads.previous, self.x),
        )
        _, sums = jax.eval_shape(self.parts.head, self.outer, _at(self.data, 0), self.x)
        zeros = functools.partial(jax.tree.map, lambda like: jnp.zeros(like.shape, like.dtype))
        return buffers, Totals(zeros(sums), self._lay_out(zeros(self.outer)))

    def unstack(self, weight_gradients: Tree) -> Tree:
        """Bring the gradients back to `[repeats, ...]`; copies of a weight are summed."""
        (gradients,) = jax.linear_transpose(self.stack, self.blocks)(weight_gradients)
        return gradients

    def _lay_out(self, outer: Tree) -> Tree:
        return lay_out(outer, self.parts.outer_names)

    # -- one tick -----------------------------------------------------------------------------------------------

    def tick(self, carry: tuple[Buffers, Totals], row: Row) -> tuple[tuple[Buffers, Totals], None]:
        buffers, totals = carry
        embedded = self._embed(row.embedding)
        buffers, y = on_stages(
            self._arrive_and_forward, (buffers, self.chunks, row.arrivals, row.forward), (embedded, self.data)
        )
        totals, dy = self._head(totals, row.head, y)
        buffers, dx = on_stages(
            self._backward_and_send, (buffers, self.chunks, y, row.forward, row.backward, row.weight), (dy, self.data)
        )
        return (buffers, self._unembed(totals, row.embedding_gradient, dx)), None

    # -- all stages together ------------------------------------------------------------------------------------

    def _embed(self, microbatches: jax.Array) -> jax.Array:
        """Look up the microbatch that enters each weight copy, if one does."""

        def embed(microbatch):
            return self.parts.embed(self.outer, _at(self.data, microbatch))

        def nothing(_):
            return jnp.zeros(self.x.shape, self.x.dtype)

        return jnp.stack([jax.lax.cond(m >= 0, embed, nothing, m) for m in microbatches])

    def _head(self, totals: Totals, microbatches: jax.Array, y: jax.Array) -> tuple[Totals, jax.Array]:
        """Add loss and gradient of the microbatch that passed the last chunk; also return its gradient to y."""

        def loss(outer, hidden, data):
            return self.parts.head(outer, data, hidden)

        def compute(stage, totals, microbatch, y):
            gradient = jax.grad(loss, argnums=(0, 1), has_aux=True)
            (douter, dhidden), sums = gradient(self.outer, _of_stage(y, stage), _at(self.data, microbatch))
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
        """Add the gradient of the look-up of the microbatch that came back to chunk 0."""

        def compute(stage, gradient, microbatch, dx):
            embed = functools.partial(self.parts.embed, data=_at(self.data, microbatch))
            (douter,) = jax.vjp(embed, self.outer)[1](_of_stage(dx, stage))
            return self._lay_out(jax.tree.map(jnp.add, gradient, douter))

        gradient = totals.outer_gradient
        for replica, home in enumerate(self.program.placement.homes):
            microbatch = microbatches[replica]
            branch = functools.partial(compute, home[0])
            gradient = jax.lax.cond(microbatch >= 0, branch, lambda g, *_: g, gradient, microbatch, dx)
        return totals._replace(outer_gradient=gradient)

    # -- each stage ---------------------------------------------------------------------------------------------

    def _arrive_and_forward(self, own, shared) -> tuple[Buffers, jax.Array]:
        buffers, chunks, arrivals, row = own
        embedded, data = shared
        buffers = self._arrive(buffers, arrivals)
        x = jnp.where(row.input < 0, embedded[row.replica], buffers.inputs[row.input])
        x = constrain(x, "batch", "residual_length", None)
        buffers = self._clear(buffers, inputs=row.input)
        data, start = _at(data, row.microbatch), chunks.starts[row.held]

        def layer(i, carry):
            x, kept = carry
            x, values = self.layer.forward(self._gather(chunks, row.held, i), (data, start + i), x)
            return x, [_put(buffer, value, row.residual, i) for buffer, value in zip(kept, values, strict=True)]

        y, kept = jax.lax.fori_loop(0, _length(chunks, row), layer, (x, buffers.kept))
        return buffers._replace(kept=kept), y

    def _arrive(self, buffers: Buffers, row: Arrivals) -> Buffers:
        """Put what the neighbours sent into the mailboxes: an activation first, if it can be both."""
        inputs, gradients = buffers.inputs, buffers.gradients
        if len(buffers.from_previous):
            inputs = _put(inputs, buffers.from_previous[0], row.input_from_previous)
            gradients = _put(gradients, buffers.from_previous[-1], row.gradient_from_previous)
        if len(buffers.from_next):
            inputs = _put(inputs, buffers.from_next[0], row.input_from_next)
            gradients = _put(gradients, buffers.from_next[-1], row.gradient_from_next)
        return buffers._replace(inputs=inputs, gradients=gradients)

    def _backward_and_send(self, own, shared) -> tuple[Buffers, jax.Array]:
        buffers, chunks, y, forward, backward, weight = own
        dhidden, data = shared
        from_head = jnp.where(forward.target == Target.END, forward.slot, -1)
        buffers = buffers._replace(gradients=_put(buffers.gradients, dhidden[forward.replica], from_head))
        buffers, dx = self._backward(buffers, chunks, data, backward)
        for slot in range(weight.microbatch.shape[0]):
            buffers = self._weight(buffers, chunks, data, Weight(*(column[slot] for column in weight)))
        buffers = buffers._replace(
            inputs=_put(buffers.inputs, y, jnp.where(forward.target == Target.HERE, forward.slot, -1)),
            gradients=_put(buffers.gradients, dx, jnp.where(backward.target == Target.HERE, backward.slot, -1)),
        )
        return self._send(buffers, y, forward.target, dx), dx

    def _backward(self, buffers: Buffers, chunks: Chunks, data: Tree, row: Backward) -> tuple[Buffers, jax.Array]:
        """B of one chunk, last layer first, with W or without."""
        dy, length = buffers.gradients[row.gradient], _length(chunks, row)
        dy = constrain(dy, "batch", "residual_length", None)
        buffers = self._clear(buffers, gradients=row.gradient)
        data, start = _at(data, row.microbatch), chunks.starts[row.held]

        def fused(i, carry):
            dy, sums = carry
            i = length - 1 - i
            weights, kept = self._gather(chunks, row.held, i), _at(buffers.kept, row.residual, i)
            dx, dweights = self.layer.backward(weights, (data, start + i), kept, dy)
            return dx, self._add(sums, dweights, row.held, i)

        def split(i, carry):
            dy, deferred = carry
            i = length - 1 - i
            weights, kept = self._gather(chunks, row.held, i), _at(buffers.kept, row.residual, i)
            dx, values = self.layer.input_gradient(weights, (data, start + i), kept, dy)
            return dx, [_put(buffer, value, row.deferred, i) for buffer, value in zip(deferred, values, strict=True)]

        dx, sums, deferred, kinds = dy, buffers.weight_gradients, buffers.deferred, self.program.backward.fused
        if (kinds == 1).any():
            dx, sums = jax.lax.fori_loop(0, jnp.where(row.fused == 1, length, 0), fused, (dx, sums))
            buffers = self._clear(buffers, kept=jnp.where(row.fused == 1, row.residual, -1))
        if (kinds == 0).any():
            dx, deferred = jax.lax.fori_loop(0, jnp.where(row.fused == 0, length, 0), split, (dx, deferred))
        return buffers._replace(weight_gradients=sums, deferred=deferred), dx

    def _weight(self, buffers: Buffers, chunks: Chunks, data: Tree, row: Weight) -> Buffers:
        """W of one chunk."""
        data, start = _at(data, row.microbatch), chunks.starts[row.held]

        def layer(i, sums):
            weights, kept = self._gather(chunks, row.held, i), _at(buffers.kept, row.residual, i)
            deferred = _at(buffers.deferred, row.deferred, i)
            dweights = self.layer.weight_gradient(weights, (data, start + i), kept, deferred)
            return self._add(sums, dweights, row.held, i)

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

    # -- pieces -------------------------------------------------------------------------------------------------

    def _gather(self, chunks: Chunks, held, layer) -> Tree:
        """One layer's weights, whole along the axes over which they are stored in shards."""
        return gather(_at(chunks.weights, held, layer), self.parts.layer_names, self.parts.compute_dtype)

    def _add(self, sums: Tree, dweights: Tree, held, layer) -> Tree:
        dweights = scatter_gradients(dweights, self.parts.layer_names)
        return jax.tree.map(lambda s, g: _put(s, s[held, layer] + g.astype(s.dtype), held, layer), sums, dweights)

    def _clear(self, buffers: Buffers, **slots) -> Buffers:
        """Poison slots that were read for the last time."""
        if not self.poison:
            return buffers

        def cleared(buffer, slot):
            hole = jnp.full(buffer.shape[1:], jnp.nan if jnp.issubdtype(buffer.dtype, jnp.inexact) else 0, buffer.dtype)
            return _put(buffer, jnp.where(slot < 0, buffer[slot], hole), slot)

        changed = {
            name: jax.tree.map(functools.partial(cleared, slot=slot), getattr(buffers, name))
            for name, slot in slots.items()
        }
        return buffers._replace(**changed)


def _length(chunks: Chunks, row: Forward | Backward | Weight) -> jax.Array:
    """Layers to run: none where there is nothing to do."""
    return jnp.where(row.microbatch < 0, 0, chunks.lengths[row.held])


def _of_stage(x: jax.Array, stage: int) -> jax.Array:
    """One stage's value, for all."""
    own = jnp.arange(len(x)).reshape(-1, *(1,) * (x.ndim - 1)) == stage
    return jax.lax.reduce(jnp.where(own, x, 0), jnp.zeros((), x.dtype), jax.lax.add, (0,))
