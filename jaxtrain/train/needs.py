"""The memory that a run needs at least, counted from its configuration before anything is allocated or compiled.

It counts what every program must hold: parameters, state of the optimizer, averages, the batch on the host, hidden
states and logits of a microbatch, decoding states of a sample. The sum over all machines is compared with all their
memory, so what does not fit here fits on no mesh. `jaxtrain compile` gives the exact memory, for one mesh.
"""

import contextlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.nn.heads.head import TILE
from jaxtrain.optim.base import Optimizer, transformation
from jaxtrain.shapes import Batch
from jaxtrain.train.hooks import Hook
from jaxtrain.train.phases import Phase

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB", "EB")
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_BYTES = 4  # of a parameter, a logit, and every field of a batch's tokens


class Need(NamedTuple):
    """Bytes over all machines, and what they are for, with the configuration keys that decide it."""

    size: int
    what: str
    on_host: bool = False


class Room(NamedTuple):
    """The memory of all machines and of all devices, in bytes. `devices` is 0 where they use that of the machines."""

    hosts: int
    devices: int


def check_run(
    *,
    model: DecoderConfig,
    optimizer: Optimizer,
    clip_norm: float | None,
    phases: Sequence[Phase],
    hooks: Sequence[Hook],
    microbatches: int,
    room: Room,
) -> None:
    """Raise ValueError if a run cannot fit, naming what is needed and what there is."""
    lasting = [parameters(model), *_averages(hooks, model)]
    _check(lasting, room)  # first, so that there are few enough parameters for the counts below
    lasting += [_optimizer_state(model, optimizer, clip_norm), *_decoding_states(hooks, model)]
    for index, phase in enumerate(phases):
        _check([*lasting, *batch(phase, f"phases[{index}]", model, microbatches)], room)


def check_evaluation(model: DecoderConfig, phase: Phase, devices: Sequence[jax.Device]) -> None:
    """Raise ValueError if a trained model and a batch of a phase cannot fit."""
    _check([parameters(model), *batch(phase, "phases[-1]", model, 1)], room_of(devices))


def parameters(model: DecoderConfig) -> Need:
    count = model.parameter_count
    return Need(_BYTES * count, f"{count:,} parameters (model.repeats, model.d_model, model.vocab_size and so on)")


def batch(phase: Phase, where: str, model: DecoderConfig, microbatches: int) -> list[Need]:
    """Return what a batch of a phase takes on the hosts, and what a microbatch of it takes on the devices."""
    key = f"({where}.batch_size={phase.batch_size}, sequence_length={phase.sequence_length})"
    tokens = phase.tokens_per_step // microbatches
    hidden = tokens * model.d_model * jnp.dtype(model.compute_dtype).itemsize
    logits = tokens * min(model.vocab_size, TILE) * _BYTES
    fields = set(Batch._fields) - {"hints"} - ({"tasks"} if model.task_count is None else set())
    of_token = len(fields) * _BYTES + (_size(dict(model.teacher.given)) if model.teacher else 0)
    return [
        Need(of_token * phase.tokens_per_step, f"a batch {key}", on_host=True),
        Need(hidden + logits, f"hidden states and logits of a microbatch {key}"),
    ]


def _averages(hooks: Sequence[Hook], model: DecoderConfig) -> list[Need]:
    size = parameters(model).size
    return [
        Need(hook.copies * size, f"{hook.copies:,} weights in the averages of hooks[{index}]", hook.on_host)
        for index, hook in enumerate(hooks)
        if hook.copies
    ]


def _optimizer_state(model: DecoderConfig, optimizer: Optimizer, clip_norm: float | None) -> Need:
    _, shapes, axes = abstract_model(model)
    tx = transformation(optimizer, optax.constant_schedule(0.0), axes.params, clip_norm=clip_norm)
    return Need(_size(jax.eval_shape(tx.init, shapes.params)), "state of the optimizer")


def _decoding_states(hooks: Sequence[Hook], model: DecoderConfig) -> list[Need]:
    def states(tokens: int):
        return jax.eval_shape(lambda: model.build(jax.random.key(0)).initial_states(1, tokens))

    return [
        Need(_size(states(hook.decoded_tokens)), f"decoding states of {hook.decoded_tokens:,} tokens (hooks[{index}])")
        for index, hook in enumerate(hooks)
        if hook.decoded_tokens
    ]


def _size(tree) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def most_room(devices: int) -> Room:
    """Return more memory than this many devices of any kind, and their machines, have."""
    return Room(hosts=10**18, devices=devices * 10**12)


def room_of(devices: Sequence[jax.Device]) -> Room:
    """Return the memory of these devices and of the machines they are in."""
    host = _memory_of_this_machine()
    local = [device for device in devices if device.process_index == jax.process_index()]
    of_one = (local[0].memory_stats() or {}).get("bytes_limit", 0) if local else 0
    return Room(host * jax.process_count(), of_one * len(devices))


def _memory_of_this_machine() -> int:
    """Return the bytes that this machine has, or that its container may use."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(int(file.read_text()))
    return min(limits)


def _check(needs: list[Need], room: Room) -> None:
    apart = bool(room.devices)
    _compare([need for need in needs if need.on_host or not apart], room.hosts, "the machines have")
    _compare([need for need in needs if not need.on_host and apart], room.devices, "the devices have")


def _compare(needs: list[Need], there: int, owner: str) -> None:
    total = sum(need.size for need in needs)
    if total <= there:
        return
    shown = sorted((need for need in needs if 20 * need.size >= total), reverse=True)
    parts = ", ".join(f"{shown_bytes(need.size)} for {need.what}" for need in shown)
    raise ValueError(f"this needs {shown_bytes(total)} of memory or more, and {owner} {shown_bytes(there)}: {parts}")


def shown_bytes(size: int) -> str:
    """Return a number of bytes as text, in a unit that fits it."""
    power = min((len(str(size)) - 1) // 3, len(_UNITS) - 1)
    return f"{size / 1000**power:,.3g} {_UNITS[power]}" if size < 10**21 else f"10^{len(str(size)) - 1} bytes"
