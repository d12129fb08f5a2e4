"""A run with a teacher of two models: their bits stay, they are stored once, and the losses are the same in pipelines
and over meshes."""

import dataclasses

import jax
import numpy as np
import pytest
import runs
from tiny import variant
from tolerances import EXACT, SAME_LOSS_ON_ANY_MESH, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.objectives.distill import Distill
from jaxtrain.pipeline.schedules.zb_h1 import ZBH1
from jaxtrain.train.gradients.pipelined import Pipelined
from jaxtrain.train.teachers import Ensemble, FromRun

BIG = variant(vocab_size=320, d_model=48)
SEEDS = (0, 1)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Two trained teachers, their data, and a student's run on one device."""
    folder = tmp_path_factory.mktemp("taught")
    data = runs.write_corpus(folder / "corpus")
    for seed in SEEDS:
        runs.train(runs.tiny_run(data, model=BIG, steps=4, seed=seed), folder / f"teacher{seed}")
    trainer = _run(data, folder).trainer(folder / "alone", devices=jax.devices()[:1])
    return data, folder, trainer.train().state


def _run(data, folder, **changes):
    teachers = tuple(FromRun(path=str(folder / f"teacher{seed}"), model=BIG) for seed in SEEDS)
    model = variant(vocab_size=320, teacher=Ensemble(teachers=teachers))
    return runs.tiny_run(
        data, **({"model": model, "objective": Distill(hard=0.3), "steps": 4, "save_every": 2} | changes)
    )


def test_the_teachers_have_the_bits_of_their_runs_after_training_and_are_stored_once(base):
    data, folder, state = base
    [one] = (folder / "alone" / "checkpoints" / "frozen").iterdir()
    assert one.is_dir() and len(runs.losses(folder / "alone")) == 4
    for seed in SEEDS:
        run = runs.tiny_run(data, model=BIG, steps=4, seed=seed)  # it is finished, and restored
        trained = runs.train(run, folder / f"teacher{seed}").state.params
        member = jax.tree.map(lambda leaf, index=seed: leaf[index], state.model.frozen["teacher"]["members"])
        assert_close(member, runs.host_copy(trained), EXACT)


def test_no_moment_is_a_teachers(base):
    _, _, state = base
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)
    assert moments == 2 * sum(leaf.size for leaf in jax.tree.leaves(state.params))


def test_a_student_in_stages_has_the_losses_of_one_device(base, tmp_path):
    """The teachers are sharded over the stages and `fsdp`, and have no stages of their own."""
    data, folder, _ = base
    gradients = Pipelined(microbatches=2, schedule=ZBH1())
    mesh = MeshConfig(stage=2, fsdp=2, tensor=2)
    runs.train(_run(data, folder, mesh=mesh, gradients=gradients), tmp_path / "run")
    found, desired = (np.array(runs.losses(at)) for at in (tmp_path / "run", folder / "alone"))
    assert_close(found, desired, SAME_LOSS_ON_ANY_MESH)


def test_it_goes_on_exactly(base, tmp_path):
    data, folder, whole = base
    config = _run(data, folder)
    crashing = dataclasses.replace(config, hooks=(*config.hooks, runs.CrashAfter(step=2)))
    with pytest.raises(runs.Crash):
        crashing.trainer(tmp_path / "run", devices=jax.devices()[:1]).train()
    resumed = config.trainer(tmp_path / "run", devices=jax.devices()[:1]).train()
    assert_close(runs.host_copy(resumed.state), runs.host_copy(whole), EXACT)
