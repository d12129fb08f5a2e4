"""Schedules that begin at the rate with which another run has ended, read from that run."""

import shutil

import numpy as np
import pytest
import runs
from messages import refused
from tiny import variant

from jaxtrain.cli.config_file import load
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.schedules import Continued, Linear, Rewarm
from jaxtrain.record.text import render
from jaxtrain.train.initial import FromRun
from jaxtrain.train.phases import Phase


@pytest.fixture(scope="module")
def ended(data, tmp_path_factory):
    """A run of six steps whose rate falls, with checkpoints of steps 3 and 6."""
    config = runs.tiny_run(
        data,
        optimizer=AdamW(learning_rate=Linear(peak=1e-2, final_ratio=0.1)),
        phases=(Phase(steps=6, batch_size=8, sequence_length=runs.LENGTH),),
        save_every=3,
    )
    folder = tmp_path_factory.mktemp("ended") / "run"
    config.train(folder)
    return folder


def _loaded(ended, file, schedule, **initial):
    """Return the configuration of a file whose run begins with the weights of another one."""
    model = variant(vocab_size=320)
    config = load(ended).config
    file.write_text(render(config))
    path = ", ".join([f"path={str(ended)!r}", *(f"{name}={value}" for name, value in initial.items())])
    config = load(file, [f"optimizer.learning_rate={schedule}", f"initial=@FromRun({path})"]).config
    assert config.model == model
    return config


def _rates(folder):
    return [record["learning_rate"] for record in runs.steps_of(folder)]


@pytest.mark.parametrize(("step", "record"), [(6, 5), (3, 2)])
def test_a_file_says_the_last_rate_of_the_run_that_it_begins_with(step, record, ended, tmp_path):
    config = _loaded(ended, tmp_path / "next.gin", "@Continued()", step=step)
    assert config.optimizer.learning_rate.begin == _rates(ended)[record]
    assert FromRun(path=str(ended), step=step).last_rate() == _rates(ended)[record]
    again = tmp_path / "again.gin"
    again.write_text(render(config))
    assert load(again).config == config


def test_the_first_step_has_the_last_rate_of_the_run_before_exactly(ended, tmp_path):
    config = _loaded(ended, tmp_path / "next.gin", "@Continued()")
    config.train(tmp_path / "run")
    found, last = _rates(tmp_path / "run"), _rates(ended)[-1]
    assert found[0] == last
    cosine = last * (0.01 + 0.99 * (1 + np.cos(np.pi * np.arange(6) / 6)) / 2)
    np.testing.assert_allclose(found, cosine, rtol=1e-5)


def test_rewarming_goes_from_there_to_its_peak_and_down():
    rate = Rewarm(peak=1e-2, warmup_steps=4, begin=1e-3).build(12)
    found = [float(rate(step)) for step in (0, 2, 4, 8, 12)]
    np.testing.assert_allclose(found, [1e-3, 5.5e-3, 1e-2, 5.5e-3, 1e-3], rtol=1e-5)


def test_without_a_run_before_it_is_refused(data):
    with refused(ValueError, "optimizer.learning_rate", "begin=None"):
        runs.tiny_run(data, optimizer=AdamW(learning_rate=Continued()))
    with refused(ValueError, "begin=-1.0"):
        Continued(begin=-1.0)


def test_a_run_without_that_checkpoint_or_without_its_rate_is_refused(ended, tmp_path):
    with refused(ValueError, "step=4", "3, 6"):
        FromRun(path=str(ended), step=4).last_rate()
    with refused(ValueError, "path=", "train it first"):
        FromRun(path=str(tmp_path / "nothing")).last_rate()
    moved = tmp_path / "moved"
    shutil.copytree(ended / "checkpoints", moved / "checkpoints")
    with refused(ValueError, "metrics.jsonl", 6, "begin="):
        FromRun(path=str(moved)).last_rate()
