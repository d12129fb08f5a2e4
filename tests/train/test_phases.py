"""A run of two phases that differ in everything a phase can change, and one that goes on inside and between them."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import runs

from jaxtrain.data import loader
from jaxtrain.mesh import MeshConfig
from jaxtrain.optim.schedules import Linear
from jaxtrain.train import stored
from jaxtrain.train.checkpoint import Retention
from jaxtrain.train.feed import Feed
from jaxtrain.train.hooks import Checkpoint, ExponentialMovingAverage
from jaxtrain.train.hooks.base import Hook
from jaxtrain.train.phases import Phase, Span, learning_rate, remaining, spans


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Losses(Hook):
    """Measures losses that it was told, after some steps; those of letters are lower than those of digits."""

    @property
    def name(self) -> str:
        return "losses"

    def measures(self, averages, validation):
        return ("validation_loss",)

    def after_step(self, run, state, hook_state):
        if run.step in (told := {2: 0.7, 3: 0.5, 4: 0.6, 7: 3.0, 8: 2.0, 9: 2.5}):
            run.write({"validation_loss": told[run.step]})
        return state, hook_state


@pytest.fixture(scope="module")
def two_phases(data, tmp_path_factory):
    """The configuration and the folder of ten steps in two phases, every one of them saved."""
    other = runs.write_corpus(tmp_path_factory.mktemp("other") / "corpus", alphabet="0123456789\n")
    second = Phase(
        steps=5,
        batch_size=16,
        sequence_length=8,
        data=other,
        learning_rate=Linear(peak=2e-2, warmup_steps=2),
        mesh=MeshConfig(data=2, fsdp=2, tensor=2),
    )
    first = Phase(steps=5, batch_size=8, sequence_length=runs.LENGTH)
    hooks = (Losses(), Checkpoint(every_steps=1, keep_last=10), ExponentialMovingAverage())
    config, folder = runs.tiny_run(data, phases=(first, second), hooks=hooks), tmp_path_factory.mktemp("phases") / "run"
    assert runs.train(config, folder).finished
    return config, folder


def test_a_phase_brings_its_own_batch_data_and_learning_rate(two_phases, whole):
    _, folder = two_phases
    first, second = runs.steps_of(folder)[:5], runs.steps_of(folder)[5:]
    assert [record["loss"] for record in first] == whole[:5]
    assert all(record["weight"] <= 8 * 16 for record in first)
    assert all(record["weight"] <= 16 * 8 for record in second)
    np.testing.assert_allclose([r["learning_rate"] for r in first], np.array([0, 1 / 3, 2 / 3, 1, 1]) * 1e-2, rtol=1e-6)
    np.testing.assert_allclose(
        [r["learning_rate"] for r in second], np.array([0, 1 / 2, 1, 2 / 3, 1 / 3]) * 2e-2, rtol=1e-6
    )
    assert second[0]["loss"] > first[-1]["loss"] + 1  # letters learnt, then digits


def test_the_best_checkpoint_is_one_of_the_last_phase_that_has_measured(two_phases, tmp_path):
    """The losses of the phase before are lower, and of other text."""
    checkpoints = shutil.copytree(two_phases[1] / "checkpoints", tmp_path / "checkpoints")
    assert stored.best(checkpoints, "validation_loss") == 8
    stored.prune(checkpoints, Retention(keep_last=1).keeps, best_by="validation_loss")
    assert stored.steps(checkpoints) == [8, 10]
    shutil.copytree(two_phases[1] / "checkpoints" / "3", checkpoints / "3")
    shutil.rmtree(checkpoints / "8")
    assert stored.best(checkpoints, "validation_loss") == 3


@pytest.mark.parametrize("step", [7, 5, 3], ids=["inside the second phase", "at the boundary", "before it"])
def test_a_run_goes_on_exactly(step, two_phases, tmp_path):
    config, folder = two_phases
    resumed = shutil.copytree(folder, tmp_path / "run")
    for later in range(step + 1, 11):
        shutil.rmtree(resumed / "checkpoints" / str(later))
    assert runs.train(config, resumed).finished
    assert runs.losses(resumed) == runs.losses(folder)


def _feed(data, rows: int, taken: dict, length: int = runs.LENGTH) -> Feed:
    phase = Phase(steps=1, batch_size=rows, sequence_length=length)
    return Feed(data, phase, seed=3, mesh=MeshConfig().build(), taken=taken)


def test_phases_of_the_same_data_go_on_where_the_one_before_stopped(data):
    taken = {}
    first = _feed(data, 8, taken)
    for _ in range(3):
        next(first)
    next(_feed(data, 8, taken, length=8))  # another stream, with a position of its own
    batch = next(_feed(data, 16, json.loads(json.dumps(taken))))
    expected = loader(data, split="train", batch_size=16, sequence_length=runs.LENGTH, seed=3, rows_consumed=24)
    np.testing.assert_array_equal(batch.tokens, next(expected).tokens)


def test_a_feed_names_the_documents_of_the_batch_it_gave(data):
    taken = {}
    next(_feed(data, 8, taken))
    feed = _feed(data, 8, taken)
    next(feed), next(feed)
    assert "rows 16 to 23" in feed.describe(ago=0)
    assert "rows 8 to 15" in feed.describe(ago=1)


def test_a_phase_has_the_schedule_of_the_run_unless_it_has_its_own():
    run = Linear(peak=1.0)
    own = Phase(steps=4, batch_size=1, sequence_length=1, learning_rate=Linear(peak=2.0))
    plain = Phase(steps=6, batch_size=1, sequence_length=1)
    rates = [learning_rate(span, run, (plain, own)) for span in spans((plain, own))]
    assert [float(rate(8)) for rate in rates] == [pytest.approx(0.2), pytest.approx(1.0)]


def test_phases_that_are_over_are_left_out_and_the_last_is_entered_when_all_are():
    one, two = (Phase(steps=steps, batch_size=1, sequence_length=1) for steps in (3, 2))
    first, second = Span(0, one, 0, 3), Span(1, two, 3, 5)
    for step, expected in {0: [first, second], 2: [first, second], 3: [second], 5: [second], 9: [second]}.items():
        assert list(remaining((one, two), step)) == expected
