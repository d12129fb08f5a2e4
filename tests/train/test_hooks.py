"""Averages of the weights by their formulas, where they lie, and that they survive a restart."""

import dataclasses
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import runs
from messages import refused
from tiny import bytes_of, variant
from tolerances import AVERAGE, EXACT, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import abstract_model
from jaxtrain.optim.base import transformation
from jaxtrain.optim.schedule_free import ScheduleFree
from jaxtrain.optim.schedules import Constant
from jaxtrain.train.evaluation import HELD_OUT
from jaxtrain.train.folder import RunFolder
from jaxtrain.train.hooks import Checkpoint, Evaluate, ExponentialMovingAverage, LatestWeightAverage
from jaxtrain.train.hooks.base import AVERAGING, Hook
from jaxtrain.train.manifest import write_manifest
from jaxtrain.train.phases import Phase
from jaxtrain.train.state import create_state
from jaxtrain.train.trained import trained_model

EMA = ExponentialMovingAverage(decay=0.8)
LAWA = LatestWeightAverage(every_steps=2, window=3)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Record(Hook):
    """Keeps the parameters that a run enters with, and those after every step."""

    found: list
    order = AVERAGING

    @property
    def name(self) -> str:
        return "record"

    def initial_state(self, state):
        self.found.append(runs.host_copy(state.params))
        return {}

    def after_step(self, run, state, hook_state):
        self.found.append(runs.host_copy(state.params))
        return state, hook_state


def _moving_average(found: list, decay: float):
    """Return the closed form d^n w_0 + (1 - d) sum_i d^(n-i) w_i, in float64."""
    weights = [decay ** (len(found) - 1)] + [(1 - decay) * decay ** (len(found) - 1 - i) for i in range(1, len(found))]
    return _mean(found, weights)


def _mean(found: list, weights: list[float]):
    return jax.tree.map(lambda *w: np.tensordot(weights, np.stack(w).astype(np.float64), 1).astype(np.float32), *found)


def _average(config, folder, name):
    mesh = config.mesh.build()
    parts = {"model": config.model, "optimizer": config.optimizer, "hooks": config.hooks, "mesh": mesh}
    return trained_model(RunFolder(folder), **parts, weights=name)[1].params


@pytest.fixture(scope="module")
def averaged(data, tmp_path_factory):
    """A run of twelve steps with averages, its parameters from step 0, and its folder."""
    folder, found = tmp_path_factory.mktemp("averaged") / "run", []
    hooks = (Checkpoint(every_steps=5, keep_last=3), EMA, LAWA, Record(found=found))
    config = runs.tiny_run(data, hooks=hooks)
    runs.train(config, folder)
    return config, found, folder


def test_the_moving_average_has_its_closed_form(averaged):
    config, found, folder = averaged
    assert len(found) == 13
    assert_close(_average(config, folder, "ema"), _moving_average(found, EMA.decay), AVERAGE)


def test_the_latest_weight_average_is_the_mean_of_its_window(averaged):
    config, found, folder = averaged
    assert_close(_average(config, folder, "lawa"), _mean([found[8], found[10], found[12]], [1 / 3] * 3), AVERAGE)


def test_averages_of_a_resumed_run_are_those_of_an_uninterrupted_one(averaged, tmp_path, whole):
    config, _, folder = averaged
    resumed = shutil.copytree(folder, tmp_path / "run")
    for step in ("10", "12"):
        shutil.rmtree(resumed / "checkpoints" / step)
    runs.train(config, resumed)
    for name in ("ema", "lawa"):
        assert_close(_average(config, resumed, name), _average(config, folder, name), EXACT, name)
    assert runs.losses(folder) == runs.losses(resumed) == whole[:12]  # training itself is untouched by averages


def test_a_hook_added_on_resuming_begins_with_the_weights_it_finds(data, tmp_path):
    folder, found = tmp_path / "run", []
    runs.train(runs.tiny_run(data, steps=5), folder)
    config = runs.tiny_run(data, steps=7, hooks=(Checkpoint(every_steps=5), EMA, Record(found=found)))
    runs.train(config, folder)
    assert len(found) == 3  # what it began with, and two steps
    assert_close(_average(config, folder, "ema"), _moving_average(found, EMA.decay), AVERAGE)


def test_an_average_that_a_run_did_not_keep_is_refused_and_those_it_kept_are_named(averaged, data, tmp_path):
    config, _, folder = averaged
    with refused(ValueError, "weights='swa'", "ema, lawa, record"):
        _average(config, folder, "swa")
    with refused(ValueError, "weights='checkpoint'", "no averages"):
        _average(runs.tiny_run(data), folder, "checkpoint")
    since = shutil.copytree(folder, tmp_path / "run")  # the hook was added to the configuration after the checkpoint
    for step in since.glob("checkpoints/*"):
        shutil.rmtree(step / "hook_ema")
        write_manifest(step)
    with refused(ValueError, "weights='ema'", since):
        _average(config, since, "ema")


def test_parameters_alone_are_their_own_average_and_no_other(averaged, tmp_path):
    """Imported ones, that is: also with an optimizer whose state has the average of what it trained."""
    config, found, folder = averaged
    config = dataclasses.replace(config, optimizer=ScheduleFree(learning_rate=Constant(peak=1e-2)))
    imported = shutil.copytree(folder, tmp_path / "run")
    for step in imported.glob("checkpoints/*"):
        shutil.rmtree(step / "progress")
        write_manifest(step)
    assert_close(runs.host_copy(_average(config, imported, None)), found[-1], EXACT)
    with refused(ValueError, "weights='ema'", imported):
        _average(config, imported, "ema")


def test_averages_go_on_across_a_phase_and_a_resume_inside_it(data, tmp_path):
    folder, found = tmp_path / "run", []
    first = Phase(steps=5, batch_size=8, sequence_length=runs.LENGTH)
    second = dataclasses.replace(first, batch_size=16, mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    hooks = (Checkpoint(every_steps=7), EMA, LAWA, Record(found=found))
    config = runs.tiny_run(data, phases=(first, dataclasses.replace(second, steps=5)), hooks=hooks)
    with pytest.raises(runs.Crash):
        runs.train(dataclasses.replace(config, hooks=(*hooks, runs.CrashAfter(step=9))), folder)
    seen = found[:6] + found[7:9]  # entering the second phase looks at the parameters once more
    del found[:]
    runs.train(config, folder)
    seen += found[1:]  # and so does going on from step 7
    assert len(seen) == 11
    assert_close(_average(config, folder, "ema"), _moving_average(seen, EMA.decay), AVERAGE)
    assert_close(_average(config, folder, "lawa"), _mean([seen[6], seen[8], seen[10]], [1 / 3] * 3), AVERAGE)


@pytest.fixture(scope="module")
def state():
    config, mesh = variant(vocab_size=320), MeshConfig().build()
    _, _, axes = abstract_model(config)
    tx = transformation(runs.OPTIMIZER, runs.OPTIMIZER.learning_rate.build(100), axes.params, clip_norm=1.0)
    return create_state(config, tx, axes, mesh, jax.random.key(0))


def _device_bytes() -> int:
    return sum(x.nbytes for x in jax.live_arrays() if x.sharding.memory_kind == "device")


def test_the_moving_average_lies_as_the_parameters_do(state):
    own = EMA.initial_state(state)
    _, own = EMA.after_step(SimpleNamespace(step=1), state, own)
    jax.tree.map(lambda a, w: _same_layout(a, w, "device"), own, state.params)


def test_the_window_takes_no_memory_of_the_devices(state):
    own = LAWA.initial_state(state)
    for step in (1, 2):
        before = _device_bytes()
        _, own = LAWA.after_step(SimpleNamespace(step=step), state, own)
        assert _device_bytes() - before <= 64  # the count of weights in it
    assert bytes_of(own["queue"]) == 3 * bytes_of(state.params)
    for params in own["queue"]:
        jax.tree.map(lambda a, w: _same_layout(a, w, "pinned_host"), params, state.params)
    average = LAWA.averaged_params(own)
    jax.tree.map(lambda a, w: _same_layout(a, w, "device"), average, state.params)
    assert_close(runs.host_copy(average), runs.host_copy(state.params), EXACT)  # one in the window so far


def _same_layout(average: jax.Array, weight: jax.Array, kind: str) -> None:
    assert average.sharding.is_equivalent_to(weight.sharding.with_memory_kind(kind), weight.ndim)
    assert average.sharding.memory_kind == kind


def test_schedule_free_is_evaluated_with_its_average(data, tmp_path):
    seen = []

    def look(run, state):
        own = run.evaluation_models(state)[""]
        seen.append([run.evaluate(model, batches=2)[HELD_OUT].loss for model in (own, state.model)])

    optimizer = ScheduleFree(learning_rate=Constant(peak=3e-2))
    hooks = (Evaluate(every_steps=4, batches=2), runs.Watch(look=look))
    result = runs.train(runs.tiny_run(data, steps=4, optimizer=optimizer, hooks=hooks), tmp_path / "run")
    averaged, plain = seen[-1]
    assert result.numbers["validation_loss"] == averaged != plain
