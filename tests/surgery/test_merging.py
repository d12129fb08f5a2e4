"""Assembly of Experts: the child's tensors are its parents', bit for bit where they should be."""

import dataclasses
import math

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from messages import check, refusal, refused
from tiny import random_model, random_params, variant
from tolerances import AVERAGE, assert_close

from jaxtrain.cli.config_file import load
from jaxtrain.cli.main import main
from jaxtrain.config import TrainConfig
from jaxtrain.data import DataConfig, StandardLibrary
from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import abstract_model
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.moe.balances import RouterBias
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.schedules import Constant
from jaxtrain.record.files import RunFiles
from jaxtrain.sharding import shardings
from jaxtrain.surgery.merging import Assembly, WeightEnsemble, merged
from jaxtrain.train.checkpoint import Checkpoints, Snapshot
from jaxtrain.train.folder import RunFolder
from jaxtrain.train.phases import Phase
from jaxtrain.train.state import state_of

EXPERTS = ("*.experts.*",)
MIXTURE = MixtureConfig(experts=4, top_k=2, expert=GatedMLPConfig(hidden=16), balances=(RouterBias(rate=1e-3),))
MODEL = variant(vocab_size=320, pattern=(dataclasses.replace(variant().pattern[0], mlp=MIXTURE),))
SHAPES, AXES = (trees.params for trees in abstract_model(MODEL)[1:])
CONFIG = TrainConfig(
    model=MODEL,
    data=DataConfig(source=StandardLibrary()),
    optimizer=AdamW(learning_rate=Constant(peak=1e-3)),
    phases=(Phase(steps=1, batch_size=8, sequence_length=16),),
    mesh=MeshConfig(fsdp=2, expert=2, tensor=2),
    writers=(),
)


def write_run(path, seed, config=CONFIG):
    """Write a run with a checkpoint of shards on eight devices."""
    folder, mesh = RunFolder(path), config.mesh.build()
    _, shapes, axes = abstract_model(config.model)
    model = jax.device_put(random_model(config.model, seed), shardings(axes, shapes, mesh))
    RunFiles.of(config).write(folder)
    with Checkpoints(folder.checkpoints) as checkpoints:
        checkpoints.save(3, Snapshot(state_of(model, optax.identity()), {}, {}))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parents")
    for seed, name in enumerate("ab"):
        write_run(folder / name, seed)
    return folder


def by_name(tree):
    return {".".join(map(str, path)): np.asarray(leaf) for path, leaf in flatten_dict(tree).items()}


def restored(run, model):
    """Return the arrays of checkpoint 0 of a run, on two devices."""
    mesh = MeshConfig(fsdp=1, data=2).build(jax.devices()[:2])
    _, shapes, axes = abstract_model(model)
    target = jax.tree.map(
        lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to),
        shapes,
        shardings(axes, shapes, mesh),
    )
    checkpoints = Checkpoints(run / "checkpoints")
    assert checkpoints.latest_valid() == 0
    return checkpoints.restore_model(0, target)


def test_a_weight_ensemble_is_a_run_of_its_own_model(tmp_path):
    dense = variant(vocab_size=320)
    runs = [tmp_path / name for name in ("base", "task")]
    for seed, run in enumerate(runs):
        write_run(run, seed, dataclasses.replace(CONFIG, model=dense, mesh=MeshConfig(fsdp=2, data=4)))
    assert main(["merge", *map(str, runs), "--by", "WeightEnsemble()", "--out", str(tmp_path / "child")]) == 0
    model = load(tmp_path / "child").config.model
    assert model == WeightEnsemble().model(dense, 2)
    child, base, task = map(
        by_name, (restored(tmp_path / "child", model).params, *(random_params(dense, i) for i in (0, 1)))
    )
    up = "stacks.blocks.blocks.0.mlp.up.kernel"
    np.testing.assert_array_equal(child[up.replace("up", "base.up")], base[up])
    np.testing.assert_array_equal(child[up.replace("up", "tasks.0.up")], task[up] - base[up])


def test_a_child_with_the_experts_of_another_run_is_theirs_bit_for_bit(runs, tmp_path, capsys):
    """The checkpoints are of shards on eight devices; nothing is compiled, so there are no collectives."""
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
    by = "Assembly(weights=(0.0, 1.0), names=('*.experts.*',))"
    assert main(["merge", str(runs / "a"), str(runs / "b"), "--by", by, "--out", str(tmp_path / "child")]) == 0
    assert not [event for event in compiled if "backend_compile" in event]
    assert str(tmp_path / "child") in capsys.readouterr().out
    config = load(tmp_path / "child").config
    assert config == CONFIG
    child, a, b = restored(tmp_path / "child", MODEL), random_model(MODEL, 0), random_model(MODEL, 1)
    jax.tree.map(np.testing.assert_array_equal, child.buffers, a.buffers)
    leaves = by_name(child.params)
    assert sum("experts" in name for name in leaves) == 3
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, by_name((b if "experts" in name else a).params)[name])


def assembled(parents, **how):
    return by_name(jax.tree.map(lambda leaf: leaf.read(), merged(Assembly(**how), parents, AXES, SHAPES)))


def test_the_first_parent_comes_back_and_weights_interpolate():
    parents = [random_model(MODEL, seed).params for seed in range(3)]
    first, second, third = map(by_name, parents)
    for how in ({"weights": (1.0, 0.0, 0.0)}, {"weights": (0.0, 0.5, 0.5), "threshold": math.inf}):
        jax.tree.map(np.testing.assert_array_equal, assembled(parents, **how), first)
    child = assembled(parents, weights=(0.5, 0.25, 0.25))
    for name, leaf in child.items():
        expected = 0.5 * first[name].astype(np.float64) + 0.25 * second[name] + 0.25 * third[name]
        assert_close(leaf, expected, AVERAGE, name)
    same = assembled([parents[0]] * 2, weights=(0.3, 0.7))
    jax.tree.map(np.testing.assert_array_equal, same, first)


def test_only_tensors_that_differ_by_more_than_the_threshold_are_taken():
    """In b every expert differs from a by another constant, which is the root mean square of the differences."""
    a = random_model(MODEL, 0).params
    size = np.arange(8, dtype=np.float32).reshape(2, 4)  # of each repeat and expert

    def moved(own, leaf):
        return leaf + size[..., None, None] * np.float32(0.01) if own.leading == 2 else leaf

    child = assembled([a, jax.tree.map(moved, AXES, a)], weights=(0.0, 1.0), names=EXPERTS, threshold=0.035)
    for name, leaf in by_name(a).items():
        expected = leaf + np.where(size > 3, size, 0)[..., None, None] * np.float32(0.01) if "experts" in name else leaf
        np.testing.assert_array_equal(child[name], expected)


@pytest.mark.parametrize(
    ("how", "facts"),
    [
        ({"weights": (0.5, 0.6)}, ("weights=(0.5, 0.6)",)),
        ({"weights": (-0.5, 1.5)}, ("weights=(-0.5, 1.5)",)),
        ({"weights": (0.5, 0.5), "threshold": math.nan}, ("threshold=nan",)),
        ({"weights": (1.0,)}, ("weights=(1.0,)", "2 parents")),
        ({"weights": (0.5, 0.5), "names": ("*.nobody.*",)}, ("*.nobody.*",)),
    ],
)
def test_what_cannot_be_assembled_is_refused(how, facts):
    a = random_model(MODEL).params
    with refused(ValueError, *facts):
        merged(Assembly(**how), [a, a], AXES, SHAPES)


def test_runs_that_cannot_be_merged_are_refused(runs, tmp_path, capsys):
    heads = dataclasses.replace(
        MODEL.pattern[0].mixer, positions=dataclasses.replace(MODEL.pattern[0].mixer.positions, theta=7.0)
    )
    other = dataclasses.replace(MODEL, pattern=(dataclasses.replace(MODEL.pattern[0], mixer=heads),))
    RunFiles.of(dataclasses.replace(CONFIG, model=other)).write(RunFolder(tmp_path / "theta"))
    RunFiles.of(dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, d_model=16))).write(
        RunFolder(tmp_path / "narrow")
    )
    (tmp_path / "published").mkdir()
    by, out = "Assembly(weights=(0.5,0.5))", tmp_path / "out"
    for beside, facts in (
        (tmp_path / "theta", ("model.pattern[0].mixer.positions.theta=7.0",)),
        (tmp_path / "narrow", ("another architecture",)),
        (tmp_path / "published", ("config.gin", "jaxtrain convert")),
    ):
        check(refusal(capsys, "merge", runs / "a", beside, "--by", by, "--out", out), beside, *facts)
    check(refusal(capsys, "merge", runs / "a", "--by", by, "--out", runs / "b"), runs / "b", "exists")
    check(refusal(capsys, "merge", runs / "a", "--by", "Mean", "--out", out), "Mean")
    assert not out.exists()
