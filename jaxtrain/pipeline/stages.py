"""Regions that are manual over the stages, and how weights get into them.

A region is written for one stage; all other axes of the mesh stay auto axes. The parameters of a model are stored as
`[repeats, ...]`, so that checkpoints know nothing of stages. For a step they are moved to the stages that run them, as
`[held, longest, ...]` on each: the chunks that the stage holds, short ones padded. If the number of stages divides the
repeats, each stage stores an equal run of them; with one chunk a stage these are the ones it runs, and nothing moves.
If it does not, every stage stores all repeats.
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
    """Return how many stages the current mesh has."""
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

    The first axis of a buffer is split over the stages as it is, `[stages * slots, ...]`. With an axis of stages of its
    own it would be reshaped, and XLA for CPU copies a buffer that it both updates and reshapes.

    `check_vma` is False: with True JAX types the residuals of a region inside this one as split over `stage`, too, and
    refuses them. With False nothing may differentiate through this region; repeats are differentiated inside it.
    """

    def on_one(buffers, own, shared):
        buffers, result = function(buffers, jax.tree.map(lambda x: x.reshape(x.shape[1:]), own), shared)
        return buffers, jax.tree.map(lambda x: x[None], result)

    specs = P(AXIS), P(AXIS), P()
    region = jax.shard_map(on_one, in_specs=specs, out_specs=P(AXIS), axis_names={AXIS}, check_vma=False)
    return region(buffers, own, shared)


def shift(x: jax.Array, by: int, *, ring: bool = True) -> jax.Array:
    """Send `x` to the stage `by` further on; without a ring the ends send to nobody and receive zeros."""
    stages = jax.lax.axis_size(AXIS)
    pairs = [(stage, stage + by) for stage in range(stages)]
    return jax.lax.ppermute(x, AXIS, [(a, b % stages) for a, b in pairs if ring or 0 <= b < stages])


@dataclass(frozen=True, kw_only=True, slots=True)
class Stacking:
    """Which repeats of the model each stage holds, and in which order."""

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
        """The repeat at every position, [stages, held, longest]. Padding is the last repeat again; nothing reads it."""
        positions = np.arange(self.lengths.max())[None, None]
        return self.starts[..., None] + np.minimum(positions, np.maximum(self.lengths - 1, 0)[..., None])

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
        """Return `[repeats, ...]` as `[stages, held, longest, ...]`. The transpose sums the copies of a weight."""
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
    """Rounds in which each stage sends stored rows to the stage `by` further on, no more than the round needs."""

    def __init__(self, wanted: np.ndarray, stored: int):
        stages = range(len(wanted))
        sent = [[_rows_between(wanted, a, (a + by) % len(wanted), stored) for a in stages] for by in stages]
        self.rounds = [by for by in stages if any(sent[by])]
        padded = [_padded(sent[by]) for by in self.rounds]
        positions = np.zeros(wanted.shape, np.int32)
        for stage in stages:
            sources = [(stage - by) % len(wanted) for by in self.rounds]
            received = [
                source * stored + row for source, rows in zip(sources, padded, strict=True) for row in rows[source]
            ]
            positions[stage] = [[received.index(row) for row in chunk] for chunk in wanted[stage]]
        self.tables = [jnp.asarray(rows) for rows in padded], jnp.asarray(positions)

    def bring(self, rows: jax.Array, sends: list[jax.Array], positions: jax.Array) -> jax.Array:
        """Return a stage's wanted rows from its stored ones; the tables are the stage's own."""
        received = [shift(rows[send], by) if by else rows[send] for by, send in zip(self.rounds, sends, strict=True)]
        return jnp.concatenate(received)[positions]


def _rows_between(wanted: np.ndarray, source: int, target: int, stored: int) -> list[int]:
    """Return which of the rows that `source` stores are wanted by `target`, counted from its first row."""
    return [int(row) - source * stored for row in np.unique(wanted[target]) if row // stored == source]


def _padded(rows: list[list[int]]) -> np.ndarray:
    longest = max(map(len, rows))
    return np.asarray([row + [0] * (longest - len(row)) for row in rows], np.int32)
