"""Runs that are trained together: one program over the mesh axis `replica`, which nothing crosses.

Branch-train-merge, Li et al. (2022), arXiv:2208.03306: experts never communicate. Each run has its own devices along
the axis, and its own data, seed, initial weights, checkpoints and metrics. Its numbers are, bit for bit, those that it
has alone on as many devices. All runs have one recipe, so a step is compiled once: it is the step of a run, in a region
that is manual over the axis. Arrays of the group are those of the runs end to end, so nothing is copied between them.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtrain.mesh import AXES
from jaxtrain.shapes import Batch
from jaxtrain.train.hooks import Hook
from jaxtrain.train.loop import Opened, Result, Trainer
from jaxtrain.train.phases import remaining
from jaxtrain.train.program import Program
from jaxtrain.train.run import Run
from jaxtrain.train.state import TrainState
from jaxtrain.train.stopping import Decision, Stop

APART = AXES[0]  # the axis along which runs lie


def check_group(trainers: Sequence[Trainer]) -> None:
    """Raise ValueError where runs cannot be trained by one program."""
    first = trainers[0]
    if jax.process_count() > 1:
        raise ValueError("runs are trained together by one process: start each by itself (sweep --print) on several")
    for trainer in trainers:
        path = trainer.folder.path
        if trainer.mesh.replica != 1:
            raise ValueError(f"{path}: mesh.replica={trainer.mesh.replica}: runs lie along it; leave it at 1")
        for name in ("recipe", "mesh", "hooks", "max_skipped_steps"):
            if getattr(trainer, name) != getattr(first, name):
                raise ValueError(
                    f"{path}: its {name} differs from that of {first.folder.path}: runs that are trained together "
                    "differ in data, seed and initial weights alone; leave out --together"
                )
        for hook in trainer.hooks:
            if type(hook).ends is not Hook.ends:
                raise ValueError(f"{path}: the hook {hook.name} may end one run before the others; leave it out")


def train_group(trainers: Sequence[Trainer], starts: Sequence[int | None], names: Sequence[str]) -> list[Result]:
    """Run all phases of all runs, whose locks are held. `starts` are what their `find_start` returned.

    Raises:
        ValueError: the runs cannot be trained by one program, or are not at the same step.
        SaveError, NonFiniteError: as `Trainer.train` of one of them.
    """
    check_group(trainers)
    if len(set(starts)) > 1:
        found = ", ".join(f"{name} at step {start or 0}" for name, start in zip(names, starts, strict=True))
        raise ValueError(f"runs are not at the same step, {found}: train those behind by themselves, or all of them")
    stop, start = Stop(), starts[0]
    with contextlib.ExitStack() as stack:
        group = [
            stack.enter_context(trainer.opened(start, stop, name=f"{name}: "))
            for trainer, name in zip(trainers, names, strict=True)
        ]
        with stop:
            for span in remaining(trainers[0].recipe.phases, start or 0):
                runs = [opened.enter(span) for opened in group]
                make_steps(runs, group)
                if any([opened.leave(run) for opened, run in zip(group, runs, strict=True)]):
                    break
        return [opened.result(run) for opened, run in zip(group, runs, strict=True)]


def make_steps(runs: Sequence[Run], group: Sequence[Opened]) -> None:
    """Make the steps of a phase, and leave each run its state, as `loop.make_steps` does for one run."""
    first, targets = runs[0], [run.phase.program.target for run in runs]
    meshes, end = [run.phase.program.mesh for run in runs], first.phase.span.end
    mesh = joined_mesh(meshes)
    step = group_step(first.phase.program, mesh)
    keys = joined(
        [jax.device_put(_key_data(run), NamedSharding(m, P())) for run, m in zip(runs, meshes, strict=True)], mesh
    )
    while first.step < end:
        decision = first.stop.decided(save=any(run.save_is_due for run in runs))
        if decision is Decision.STOP:
            break
        if decision is Decision.SAVE:
            for run, opened, own in zip(runs, group, meshes, strict=True):
                with jax.set_mesh(own):
                    run.save(opened.state)
        states = joined([opened.state for opened in group], mesh)
        batch = joined([next(run.phase.feed) for run in runs], mesh)
        with jax.set_mesh(mesh):
            states, measured = step(states, batch, keys)
        for run, opened, target, own in zip(runs, group, targets, meshes, strict=True):
            run.step += 1
            run.finish_step()
            run.recorder.begin(run.step, {name: _scalar(value, own) for name, value in measured.items()})
            state = part(states, target)
            with jax.set_mesh(own):
                opened.state = run.hooks.after_step(run, state)
            with run.stop.reporting():
                run.checkpoints.check()
    for run, opened, own in zip(runs, group, meshes, strict=True):
        with jax.set_mesh(own):
            if run.step < end or run.is_last:
                run.save(opened.state)
            run.finish_step()


def group_step(program: Program, mesh: Mesh) -> jax.stages.Wrapped:
    """Return the jitted step of a group, from the program of one of its runs. The states are donated."""

    def of_one(state: TrainState, batch: Batch, key):
        state = jax.tree.map(lambda leaf, like: leaf.reshape(like.shape), state, program.target)
        return jax.tree.map(jnp.atleast_1d, program.plain(state, batch, jax.random.wrap_key_data(key)))

    region = jax.shard_map(
        of_one, mesh=mesh, in_specs=P(APART), out_specs=P(APART), axis_names={APART}, check_vma=False
    )
    layout = jax.tree.map(lambda like: end_to_end(like.sharding, mesh), program.target)
    return jax.jit(region, donate_argnums=0, out_shardings=(layout, NamedSharding(mesh, P(APART))))


def joined_mesh(meshes: Sequence[Mesh]) -> Mesh:
    """Return the mesh of a group from those of its runs, each of which has one place along the axis of runs."""
    first = meshes[0]
    devices = np.concatenate([mesh.devices for mesh in meshes], axis=first.axis_names.index(APART))
    return Mesh(devices, first.axis_names, axis_types=first.axis_types)


def joined[Tree](trees: Sequence[Tree], mesh: Mesh) -> Tree:
    """Return arrays on the devices of each run as arrays over all devices: end to end, and nothing is copied."""

    def one(*leaves: jax.Array) -> jax.Array:
        shards = [shard.data for leaf in leaves for shard in leaf.addressable_shards]
        if not leaves[0].ndim:
            shards = [shard.reshape(1) for shard in shards]
        length, *others = leaves[0].shape or (1,)
        shape = (len(leaves) * length, *others)
        return jax.make_array_from_single_device_arrays(shape, end_to_end(leaves[0].sharding, mesh), shards)

    return jax.tree.map(one, *trees)


def part[Tree](tree: Tree, target: Tree) -> Tree:
    """Return what one run has of joined arrays. `target` has its shapes, and its layout over its devices."""

    def one(leaf: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
        assert isinstance(like.sharding, NamedSharding), "a target has layouts"
        own = like.sharding.device_set
        shards = [shard.data for shard in leaf.addressable_shards if shard.device in own]
        shards = shards if like.shape else [shard.reshape(()) for shard in shards]
        return jax.make_array_from_single_device_arrays(like.shape, like.sharding, shards)

    return jax.tree.map(one, tree, target)


def _scalar(values: jax.Array, mesh: Mesh) -> jax.Array:
    """Return the number of one run, from those of all."""
    like: Any = jax.ShapeDtypeStruct((), values.dtype, sharding=NamedSharding(mesh, P()))
    return part(values, like)


def _key_data(run: Run) -> jax.Array:
    return jax.random.key_data(jax.random.fold_in(run.key, 1))


def end_to_end(sharding: Any, mesh: Mesh) -> NamedSharding:
    """Return the layout of arrays of all runs, end to end, from that of the array of one."""
    first, *others = sharding.spec or (None,)
    inner = () if first is None else (first,) if isinstance(first, str) else first
    return NamedSharding(mesh, P((APART, *(axis for axis in inner if axis != APART)), *others))
