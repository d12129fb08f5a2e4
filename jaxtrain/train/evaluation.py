"""The objective over validation: always the same batches in the same order, whatever the run's seed."""

import itertools
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from jaxtrain.data import DataConfig, loader
from jaxtrain.objectives.sums import Sums
from jaxtrain.shapes import Batch, ParamTree
from jaxtrain.train.feed import Layout

SEED = 0


def evaluate(
    step: Callable[[ParamTree, Batch], Sums],
    params: ParamTree,
    data: DataConfig,
    *,
    batch_size: int,
    sequence_length: int,
    batches: int | None,
    mesh: Mesh,
) -> Sums:
    """Return the sums, as floats, over the first `batches` batches of validation, or over one whole pass."""
    layout = Layout(batch_size, sequence_length, mesh)
    iterator = loader(
        data,
        split="validation",
        batch_size=batch_size,
        sequence_length=sequence_length,
        seed=SEED,
        rows=layout.rows,
        num_epochs=1,
    )
    with jax.set_mesh(mesh):
        parts = [step(params, layout.globalise(batch)) for batch in itertools.islice(iterator, batches)]
    return jax.tree.map(lambda *values: sum(map(float, values)), *parts)
