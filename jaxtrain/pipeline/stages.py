"""Regions that are manual over the stages, and the way of the weights into them.

Inside a region there is one stage; all other axes of the mesh stay with the compiler. The parameters of a model lie as
`[repeats, ...]`, so that checkpoints know nothing of stages. For a step they are brought to the stages that run them,
as `[held, longest, ...]` on each: the chunks of the placement, short ones padded. Where the stages divide the repeats,
each stores an equal run of them; with one chunk a stage, that is what it runs, and nothing moves. Otherwise every
stage stores all.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from jaxtrain.pipeline.placement import Placement

AXIS = "stage"


def stages_of_mesh() -> int:
    """Return the stages of the mesh at hand."""
    return jax.sharding.get_abstract_mesh().shape.get(AXIS, 1)


def on_stages(function: Callable, own, shared=()):
    """Call `function(own, shared)` on every stage with its own part of `own` and the whole of `shared`.

    The leaves of `own` and of the result have a leading axis of stages.
    """

    def on_one(_, own, shared):
        return (), function(own, shared)

    return update_on_stages(on_one, (), own, shared)[1]


def update_on_stages(function: Callable, buffers, own, shared):
    """Call `function(buffers, own, shared)` on every stage, which returns its buffers, updated, and a result.

    The first axis of a buffer is split over the stages as it is, `[stages * slots, ...]`. An axis of stages would have
    to be taken off and put back, and XLA for CPU copies a buffer that it both updates and reshapes.

    With `check_vma=True` JAX types the residuals of a region inside this one as split over `stage` too, and refuses
    them. Without it nothing may differentiate through a region of the stages; repeats are differentiated inside it.
    """

    def on_one(buffers, own, shared):
        buffers, result = function(buffers, jax.tree.map(lambda x: x.reshape(x.shape[1:]), own), shared)
        return buffers, jax.tree.map(lambda x: x[None], result)

    specs = P(AXIS), P(AXIS), P()
    region = jax.shard_map(on_one, in_specs=specs, out_specs=P(AXIS), axis_names={AXIS}, check_vma=False)
    return region(buffers, own, shared)


def shift(x: jax.Array, by: int, *, ring: bool = True) -> jax.Array:
    """Send to the stage `by` places on; without a ring the ends send to nobody and receive zeros."""
    stages = jax.lax.axis_size(AXIS)
    pairs = [(stage, stage + by) for stage in range(stages)]
    return jax.lax.ppermute(x, AXIS, [(a, b % stages) for a, b in pairs if ring or 0 <= b < stages])


@dataclass(frozen=True, kw_only=True, slots=True)
class Stacking:
    """Which repeats of the model lie where on which stage."""

    placement: Placement
    repeats: int

    @property
    def starts(self) -> np.ndarray:
        """First repeat of each chunk a stage holds, [stages, held]."""
        return self._by_held(lambda repeats: repeats.start)

    @property
    def lengths(self) -> np.ndarray:
        """Repeats of each chunk a stage holds, [stages, held]; 0 where it holds fewer chunks than another."""
        return self._by_held(len)

    @property
    def wanted(self) -> np.ndarray:
        """The repeat in every place, [stages, held, longest]. Padding repeats the last one; nothing reads it."""
        places = np.arange(self.lengths.max())[None, None]
        return self.starts[..., None] + np.minimum(places, np.maximum(self.lengths - 1, 0)[..., None])

    def _by_held(self, number: Callable[[range], int]) -> np.ndarray:
        repeats, held = self.placement.repeats(self.repeats), self.placement.held
        table = np.zeros((self.placement.stages, max(map(len, held))), np.int32)
        for stage, pairs in enumerate(held):
            table[stage, : len(pairs)] = [number(repeats[chunk]) for _, chunk in pairs]
        return table

    @property
    def moves(self) -> bool:
        """Whether a stage runs other repeats than it stores."""
        return self.wanted.size != self.repeats or (self.wanted.ravel() != np.arange(self.repeats)).any()

    def stack(self, blocks):
        """Bring `[repeats, ...]` to `[stages, held, longest, ...]`. Its transpose sums the copies of a weight."""
        stages, wanted = self.placement.stages, self.wanted
        if self.repeats % stages:
            return on_stages(lambda own, shared: jax.tree.map(lambda w: w[own], shared), jnp.asarray(wanted), blocks)
        stored = jax.tree.map(lambda w: w.reshape(stages, self.repeats // stages, *w.shape[1:]), blocks)
        if not self.moves:
            return jax.tree.map(lambda w: w.reshape(*wanted.shape, *w.shape[2:]), stored)
        exchange = _Exchange(wanted, self.repeats // stages)

        def bring(own, _):
            tables, rows = own
            return jax.tree.map(lambda w: exchange.bring(w, *tables), rows)

        return on_stages(bring, (exchange.tables, stored))


class _Exchange:
    """Rounds in which each stage sends stored rows to the stage some places on, as few rows as the round needs."""

    def __init__(self, wanted: np.ndarray, stored: int):
        stages = range(len(wanted))
        sent = [[_rows_between(wanted, a, (a + by) % len(wanted), stored) for a in stages] for by in stages]
        self.rounds = [by for by in stages if any(sent[by])]
        padded = [_padded(sent[by]) for by in self.rounds]
        places = np.zeros(wanted.shape, np.int32)
        for stage in stages:
            sources = [(stage - by) % len(wanted) for by in self.rounds]
            received = [
                source * stored + row for source, rows in zip(sources, padded, strict=True) for row in rows[source]
            ]
            places[stage] = [[received.index(row) for row in chunk] for chunk in wanted[stage]]
        self.tables = [jnp.asarray(rows) for rows in padded], jnp.asarray(places)

    def bring(self, rows: jax.Array, sends: list[jax.Array], places: jax.Array) -> jax.Array:
        """Return a stage's wanted rows from its stored ones; the tables are the stage's own."""
        received = [shift(rows[send], by) if by else rows[send] for by, send in zip(self.rounds, sends, strict=True)]
        return jnp.concatenate(received)[places]


def _rows_between(wanted: np.ndarray, source: int, target: int, stored: int) -> list[int]:
    """Return which of the rows that one stage stores another wants."""
    return [int(row) - source * stored for row in np.unique(wanted[target]) if row // stored == source]


def _padded(rows: list[list[int]]) -> np.ndarray:
    longest = max(map(len, rows))
    return np.asarray([row + [0] * (longest - len(row)) for row in rows], np.int32)
