"""`jaxtrain train CONFIG --dry-run`: all that a run builds, and one step of every phase on made-up tokens.

No text is read or tokenised, and nothing is written. Initial weights are those of the run.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxtrain.config import TrainConfig
from jaxtrain.models.decoder import abstract_model
from jaxtrain.shapes import Batch
from jaxtrain.train.evaluation import mean_of
from jaxtrain.train.feed import Layout
from jaxtrain.train.hooks.states import HookStates
from jaxtrain.train.initial import initial_arrays
from jaxtrain.train.needs import shown_bytes
from jaxtrain.train.phases import Span
from jaxtrain.train.state import begin
from jaxtrain.train.step import make_evaluation_step


def dry_run(config: TrainConfig, say: Callable[[str], None]) -> None:
    """Make one step of every phase, and evaluate.

    Raises:
        ValueError: a step gives a loss or gradient that is not finite.
    """
    key, state = jax.random.key(config.seed), None
    hooks = HookStates(config.hooks)
    for span in config.recipe.spans:
        mesh = (span.phase.mesh or config.mesh).build()
        program = config.recipe.program(span, mesh)
        if state is None:
            state = begin(initial_arrays(config.initial, config.model, mesh, key), program.tx, program.target)
        else:
            state = jax.device_put(state, jax.tree.map(lambda x: x.sharding, program.target))
        hooks.enter(state, lambda name, shapes: None)
        batch = made_up(config, span, mesh)
        began = time.perf_counter()
        with jax.set_mesh(mesh):
            state, measured = program.step(state, batch, jax.random.fold_in(key, 1))
        numbers = {name: float(value) for name, value in measured.items()}
        seconds = time.perf_counter() - began
        if numbers["skipped_in_a_row"]:
            raise ValueError(
                f"phases[{span.number}]: a step on made-up tokens has a loss or gradient that is not finite"
            )
        say(
            f"phases[{span.number}]: one step of {span.phase.batch_size} x {span.phase.sequence_length} tokens on "
            f"{mesh.size} devices, compiled and made in {seconds:.1f} s, loss {numbers['loss']:.4f}, gradient norm "
            f"{numbers['gradient_norm']:.4f}"
        )
        objective = config.recipe.objective_of(span.phase)
        evaluate = make_evaluation_step(abstract_model(config.model).graph, objective)
        with jax.set_mesh(mesh):
            found = mean_of(objective, [(*evaluate(state.model, batch), None)])
        say(f"phases[{span.number}]: evaluated, loss {found.loss:.4f}")
    if used := _most_memory():
        say(f"at most {shown_bytes(used)} of a device's memory were in use")
    say("nothing was written, and no text was read: the tokens were made up")


def made_up(config: TrainConfig, span: Span, mesh: Mesh) -> Batch:
    """Return a batch of a phase: two documents of random tokens a row, as its examples show them."""
    phase = span.phase
    data, length = phase.data or config.data, phase.sequence_length
    rng = np.random.default_rng(0)
    positions, half = np.arange(length, dtype=np.int32), np.int32((length + 1) // 2)
    second = (positions >= half).astype(np.int32)
    given = config.model.teacher.given if config.model.teacher else {}
    hints: Any = {name: np.zeros((length, *hint.shape), hint.dtype) for name, hint in given.items()}
    rows = []
    for _ in range(phase.batch_size):
        tokens = rng.integers(0, data.tokenizer.vocab_size, length + 1).astype(np.int32)
        columns = tokens[:-1], tokens[1:], np.ones(length, np.float32), 1 + second, positions - half * second
        row = Batch(*columns)  # type: ignore[arg-type]  # numpy arrays up to the step, and annotated for the step
        rows.append(data.examples(row, vocab_size=data.tokenizer.vocab_size, rng=rng)._replace(hints=hints))
    layout = Layout(phase.batch_size, length, mesh)
    return layout.globalise(jax.tree.map(lambda *leaves: np.stack(leaves), *(rows[row] for row in layout.rows)))


def _most_memory() -> int:
    """Return the most bytes of one device that were in use, 0 where devices do not say."""
    return max((device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices())
