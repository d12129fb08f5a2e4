"""Runs trained together have, bit for bit, the numbers that each has alone, and nothing crosses between them."""

import contextlib
import dataclasses
import shutil

import jax
import pytest
import runs
from messages import check, refusal, refused
from tiny import program_of, variant
from tolerances import EXACT, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.planning.collectives import collectives
from jaxtrain.train import group
from jaxtrain.train.hooks import EarlyStop, Evaluate, ExponentialMovingAverage
from jaxtrain.train.program import abstract_batch

DEVICES = jax.devices()


def together(configs, folders):
    """Train runs together, each on two devices."""
    with contextlib.ExitStack() as locks:
        trainers = []
        for number, (config, folder) in enumerate(zip(configs, folders, strict=True)):
            trainers.append(config.trainer(folder, devices=DEVICES[2 * number : 2 * number + 2]))
            locks.enter_context(trainers[-1].lock)
        starts = [trainer.find_start() for trainer in trainers]
        return group.train_group(trainers, starts, [folder.name for folder in folders])


def alone(config, folder):
    return config.trainer(folder, devices=DEVICES[:2]).train()


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """Two runs on other texts, trained together and each alone: configurations, the folder, and the states."""
    folder = tmp_path_factory.mktemp("group")
    configs = []
    for number, alphabet in enumerate(("abcd ", "0123\n")):
        data = runs.write_corpus(folder / f"text{number}", alphabet=alphabet)
        config = runs.tiny_run(data, steps=4, save_every=2, seed=number)
        configs.append(dataclasses.replace(config, hooks=(ExponentialMovingAverage(), *config.hooks)))
    results = together(configs, [folder / "a", folder / "b"])
    singles = [alone(config, folder / f"{name}-alone") for config, name in zip(configs, "ab", strict=True)]
    return configs, folder, [runs.host_copy(result.state) for result in results], singles


def test_a_run_of_a_group_is_what_it_is_alone_bit_for_bit(experts):
    _, folder, states, singles = experts
    for name, state, single in zip("ab", states, singles, strict=True):
        assert_close(state, runs.host_copy(single.state), EXACT)
        assert runs.losses(folder / name) == runs.losses(folder / f"{name}-alone")
    assert runs.losses(folder / "a") != runs.losses(folder / "b")


def test_a_group_goes_on_exactly_and_so_does_one_run_of_it_alone(experts, tmp_path):
    configs, folder, states, _ = experts
    for name in "ab":
        shutil.copytree(folder / name, tmp_path / name)
        shutil.rmtree(tmp_path / name / "checkpoints" / "4")
    untouched = runs.content(tmp_path / "b")
    one = shutil.copytree(tmp_path / "a", tmp_path / "one")
    assert_close(runs.host_copy(alone(configs[0], one).state), states[0], EXACT)
    assert runs.content(tmp_path / "b") == untouched
    with refused(ValueError, "one at step 4", "b at step 2"):
        together(configs, [one, tmp_path / "b"])
    resumed = together(configs, [tmp_path / "a", tmp_path / "b"])
    for result, state in zip(resumed, states, strict=True):
        assert_close(runs.host_copy(result.state), state, EXACT)


def test_a_step_of_eight_experts_has_no_collectives(experts):
    [config, _] = experts[0]
    meshes = [MeshConfig().build([device]) for device in DEVICES]
    mesh, program = group.joined_mesh(meshes), program_of(config.recipe, meshes[0])

    def of_eight(leaf):
        length, *others = leaf.shape or (1,)
        layout = group.end_to_end(leaf.sharding, mesh)
        return jax.ShapeDtypeStruct((8 * length, *others), leaf.dtype, sharding=layout)

    key = jax.ShapeDtypeStruct((2,), "uint32", sharding=jax.tree.leaves(program.target)[-1].sharding)
    whole = jax.tree.map(of_eight, (program.target, abstract_batch(program.phase, meshes[0], program.given), key))
    with jax.set_mesh(mesh):
        compiled = group.group_step(program, mesh).lower(*whole).compile()
    assert collectives(compiled.as_text()).items == ()


def test_runs_that_do_not_share_a_program_are_refused(experts, tmp_path):
    configs, *_ = experts
    stopping = tuple(
        dataclasses.replace(config, hooks=(Evaluate(every_steps=1, batches=1), EarlyStop(patience=1)))
        for config in configs
    )
    wide = dataclasses.replace(configs[1], model=variant(vocab_size=320, d_model=16))
    for pair, fact in (((configs[0], wide), "recipe"), (stopping, "early_stop")):
        with refused(ValueError, fact, tmp_path):
            together(pair, [tmp_path / "a", tmp_path / "b"])


def test_a_sweep_trains_its_runs_together(experts, tmp_path, monkeypatch, capsys):
    from jaxtrain.cli.main import main

    configs, folder, *_ = experts
    monkeypatch.setattr(jax, "devices", lambda *_: DEVICES[:4])
    monkeypatch.setattr(jax, "device_count", lambda *_: 4)
    file = runs.write_config(dataclasses.replace(configs[0], seed=3), tmp_path / "run.gin")
    globs = [config.data.source.glob for config in configs]
    grid = f"data.source.glob={','.join(map(repr, globs))}"
    words = ["sweep", str(file), "--grid", grid, "--folder", str(tmp_path / "sweep"), "--together"]
    assert main(words) == 0
    assert "*" in capsys.readouterr().out
    assert len(list((tmp_path / "sweep").glob("*/checkpoints/4"))) == 2
    line = refusal(capsys, "sweep", file, "--grid", "seed=0,1,2", "--folder", tmp_path / "three", "--together")
    check(line, "--together", "3 runs", "4 devices")
