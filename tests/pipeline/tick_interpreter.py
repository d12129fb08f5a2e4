"""Runs a tick program in plain numpy on a toy model, reading nothing but the program's tables.

The model is C chunks, y = tanh(x * mask[microbatch, chunk]) @ A[chunk], with a row of an embedding for each microbatch
at the start and half the squared distance to a target at the end. F saves the tanh, which both B and W read.

Every buffer starts as NaN, and every slot becomes NaN again after it was read for the last time: a wrong entry shows.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from jaxtrain.pipeline.tick_program import Slots, Target, TickProgram


class Model(NamedTuple):
    """Weights and data; the masks make every (microbatch, chunk) different, as dropout keys would."""

    weights: np.ndarray  # [chunks, width, width]
    masks: np.ndarray  # [microbatches, chunks, width]
    embedding: np.ndarray  # [microbatches, width]
    targets: np.ndarray  # [microbatches, width]

    @classmethod
    def random(cls, chunks: int, microbatches: int, width: int = 3) -> "Model":
        rng = np.random.default_rng(chunks * 1000 + microbatches)
        weights = rng.normal(size=(chunks, width, width)) / np.sqrt(width)
        masks = rng.uniform(0.5, 1.5, size=(microbatches, chunks, width))
        return cls(weights, masks, rng.normal(size=(microbatches, width)), rng.normal(size=(microbatches, width)))


class Gradients(NamedTuple):
    """Loss, and its gradients with respect to the weights and the embedding."""

    loss: float
    weights: np.ndarray
    embedding: np.ndarray


def sequential(model: Model) -> Gradients:
    """The definition: every microbatch through every chunk, then back."""
    loss, weights, embedding = 0.0, np.zeros_like(model.weights), np.zeros_like(model.embedding)
    for microbatch, x in enumerate(model.embedding):
        inputs = []
        for chunk, matrix in enumerate(model.weights):
            inputs.append(np.tanh(x * model.masks[microbatch, chunk]))
            x = inputs[-1] @ matrix
        gradient = x - model.targets[microbatch]
        loss += 0.5 * float(gradient @ gradient)
        for chunk in reversed(range(len(model.weights))):
            weights[chunk] += np.outer(inputs[chunk], gradient)
            gradient = (gradient @ model.weights[chunk].T) * (1 - inputs[chunk] ** 2) * model.masks[microbatch, chunk]
        embedding[microbatch] = gradient
    return Gradients(loss, weights, embedding)


@dataclass(kw_only=True)
class _Stage:
    """One stage's buffers, gradient sums and outgoing results."""

    weights: np.ndarray
    gradients: np.ndarray
    inputs: np.ndarray
    residuals: np.ndarray
    mailbox: np.ndarray
    deferred: np.ndarray
    sent: dict[Target, list[np.ndarray]] = field(default_factory=dict)
    passed: np.ndarray | None = None  # what the last chunk's F made, in the last tick that the stage ran


def run(program: TickProgram, model: Model) -> Gradients:
    """Execute all ticks; raises AssertionError where the program breaks its own promises."""
    width = model.weights.shape[-1]
    stages = [_stage(held, model, program.slots, width) for held in program.placement.held]
    loss, embedding = [0.0], np.full_like(model.embedding, np.nan)
    for tick in range(program.ticks):
        sent = [stage.sent for stage in stages]
        for number, stage in enumerate(stages):
            stage.sent = {}
            _receive(program, sent, stages, tick, number)
        passed = [stage.passed for stage in stages]
        for number, stage in enumerate(stages):
            _forward(program, model, stage, tick, number)
        for number, stage in enumerate(stages):
            _head(program, model, stage, passed[number] if program.late_head else stage.passed, (tick, number), loss)
        for number, stage in enumerate(stages):
            _backward(program, model, stage, tick, number, embedding)
            for slot in range(program.weight.microbatch.shape[2]):
                _weight(program, stage, (tick, number, slot))
        _check_sends(program, stages)
    assert not any(stage.sent for stage in stages), "something was sent in the last tick"
    total = np.zeros_like(model.weights)
    for held, stage in zip(program.placement.held, stages, strict=True):
        for place, (_, chunk) in enumerate(held):
            total[chunk] += stage.gradients[place]
    return Gradients(loss[0], total, embedding)


def _stage(held: tuple[tuple[int, int], ...], model: Model, slots: Slots, width: int) -> _Stage:
    weights = np.stack([model.weights[chunk] for _, chunk in held])
    empty = [np.full((count, width), np.nan) for count in slots]
    gradients = np.zeros_like(weights)
    return _Stage(
        weights=weights, gradients=gradients, inputs=empty[0], residuals=empty[1], mailbox=empty[2], deferred=empty[3]
    )


def _receive(program: TickProgram, sent: list[dict], stages: list[_Stage], tick: int, number: int) -> None:
    arrivals = program.arrivals
    sides = (
        (number - 1, Target.NEXT, arrivals.input_from_previous, arrivals.gradient_from_previous),
        (number + 1, Target.PREVIOUS, arrivals.input_from_next, arrivals.gradient_from_next),
    )
    for neighbour, direction, inputs, gradients in sides:
        reachable = program.ring or 0 <= neighbour < len(stages)
        values = list(sent[neighbour % len(stages)].get(direction, ())) if reachable else []
        for slot, buffer in ((inputs, stages[number].inputs), (gradients, stages[number].mailbox)):
            if slot[tick, number] >= 0:
                buffer[slot[tick, number]] = values.pop(0)
        assert not values, "something arrived that no table stores"


def _forward(program: TickProgram, model: Model, stage: _Stage, tick: int, number: int) -> None:
    stage.passed = None
    row = [int(table[tick, number]) for table in program.forward]
    microbatch, chunk, replica, held, source, residual, target, slot = row
    assert (microbatch < 0) == (target < 0)
    if microbatch < 0:
        return
    x = model.embedding[microbatch] if source < 0 else _take(stage.inputs, source)
    assert (source < 0) == (chunk == 0) == (program.embedding[tick, replica] == microbatch)
    stage.residuals[residual] = np.tanh(x * model.masks[microbatch, chunk])
    y = stage.residuals[residual] @ stage.weights[held]
    if target == Target.END:
        stage.passed = y
    elif target == Target.HERE:
        stage.inputs[slot] = y
    else:
        stage.sent.setdefault(Target(target), []).append(y)


def _head(program: TickProgram, model: Model, stage: _Stage, y, place: tuple[int, int], loss: list[float]) -> None:
    replica, slot = (int(table[place]) for table in program.from_head)
    assert (slot < 0) == (y is None)
    if y is not None:
        stage.mailbox[slot] = y - model.targets[program.head[place[0], replica]]
        loss[0] += 0.5 * float(np.sum(stage.mailbox[slot] ** 2))


def _backward(program: TickProgram, model: Model, stage: _Stage, tick: int, number: int, embedding: np.ndarray) -> None:
    row = [int(table[tick, number]) for table in program.backward]
    microbatch, chunk, replica, held, source, residual, fused, deferred, target, slot = row
    assert (microbatch < 0) == (target < 0)
    if microbatch < 0:
        return
    gradient = _take(stage.mailbox, source)
    saved = stage.residuals[residual].copy()
    assert np.isfinite(saved).all(), "read an empty slot"
    if fused:
        stage.gradients[held] += np.outer(_take(stage.residuals, residual), gradient)
    else:
        stage.deferred[deferred] = gradient
    dx = (gradient @ stage.weights[held].T) * (1 - saved**2) * model.masks[microbatch, chunk]
    if target == Target.END:
        assert program.embedding_gradient[tick, replica] == microbatch
        embedding[microbatch] = dx
    elif target == Target.HERE:
        stage.mailbox[slot] = dx
    else:
        stage.sent.setdefault(Target(target), []).append(dx)


def _weight(program: TickProgram, stage: _Stage, place: tuple[int, int, int]) -> None:
    microbatch, _, _, held, residual, deferred = [int(table[place]) for table in program.weight]
    if microbatch >= 0:
        stage.gradients[held] += np.outer(_take(stage.residuals, residual), _take(stage.deferred, deferred))


def _take(buffer: np.ndarray, slot: int) -> np.ndarray:
    """Read a slot for the last time."""
    value = buffer[slot].copy()
    assert np.isfinite(value).all(), "read an empty slot"
    buffer[slot] = np.nan
    return value


def _check_sends(program: TickProgram, stages: list[_Stage]) -> None:
    for stage in stages:
        assert len(stage.sent.get(Target.NEXT, ())) <= program.payloads.next
        assert len(stage.sent.get(Target.PREVIOUS, ())) <= program.payloads.previous
