"""Asking a teacher for the logits of every row that a run takes, once, before students train."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jaxtrain.data import DataConfig, batches_of, open_rows
from jaxtrain.models.decoder import Decoder, DecoderConfig, frozen_teacher
from jaxtrain.models.members import Members
from jaxtrain.models.trees import together
from jaxtrain.nn.param import merge, split
from jaxtrain.objectives.base import Objective
from jaxtrain.shapes import Batch, ModelState
from jaxtrain.train.feed import Layout, Taken, rows_taken
from jaxtrain.train.frozen import fingerprint
from jaxtrain.train.logits.folder import Answers, LogitsFolder, write_folder
from jaxtrain.train.phases import Phase


class _Taught(NamedTuple):
    """What an objective sees of a model where a teacher alone is there."""

    teacher: Decoder | Members


def write_logits(
    folder: Path,
    *,
    model: DecoderConfig,
    objective: Objective,
    data: DataConfig,
    phases: Sequence[Phase],
    seed: int,
    mesh: Mesh,
    command: str,
    say: Callable[[str], None] = lambda text: None,
) -> LogitsFolder:
    """Write the logits of all rows that the phases take, from the teacher of `model`. This is for one process.

    Raises:
        ValueError: the model has no teacher that can be asked, or the objective no `top_k`; the folder exists.
        OSError: it cannot be written.
    """
    teacher, top_k = model.teacher, objective.top_k
    if teacher is None or not teacher.members:
        kind = f"{type(teacher).__name__}(...)" if teacher else None
        raise ValueError(f"model.teacher={kind}: there is no model to ask; set it to FromRun(path=...)")
    if top_k is None:
        raise ValueError("objective.top_k=None: set it to the number of words to store of every token")
    if jax.process_count() > 1:
        raise NotImplementedError("logits are written by one process; run the command on one machine")
    graph, _ = split(nnx.eval_shape(lambda: frozen_teacher(teacher, nnx.Rngs(0))))

    @jax.jit
    def ask(arrays: ModelState, batch: Batch):
        hints = objective.prepared(_Taught(merge(graph, arrays)), batch).hints  # type: ignore[arg-type]
        return hints["words"], hints["logits"]

    with jax.set_mesh(mesh):
        arrays = ModelState({}, together(teacher.arrays(mesh)))

        def answers(taken: Taken) -> Iterator[Answers]:
            rows = open_rows(
                taken.data, split="train", sequence_length=taken.sequence_length, seed=seed, stores=taken.stores
            )
            layout = Layout(taken.batch_size, taken.sequence_length, mesh)
            batches = batches_of(rows, batch_size=taken.batch_size, rows=layout.rows)
            for first in range(0, taken.rows, taken.batch_size):
                words, logits = (np.asarray(x) for x in ask(arrays, layout.globalise(next(batches))))
                yield words[: taken.rows - first], logits[: taken.rows - first]
                say(f"{min(first + taken.batch_size, taken.rows):,} of {taken.rows:,} rows")

        return write_folder(
            folder,
            ((taken.stream, answers(taken)) for taken in rows_taken(phases, data, seed)),
            teacher=fingerprint(arrays.frozen),
            top_k=top_k,
            vocab_size=model.vocab_size,
            command=command,
        )
