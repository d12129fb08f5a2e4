"""Which checkpoints a run leaves: its last, however it ends, and its best; and a hook that ends it."""

import dataclasses
import shutil
from types import SimpleNamespace

import pytest
import runs
from messages import refused
from tolerances import EXACT, assert_close

from jaxtrain.train import checkpoint
from jaxtrain.train.folder import RunFolder
from jaxtrain.train.hooks import Checkpoint, EarlyStop, Evaluate, ExponentialMovingAverage
from jaxtrain.train.hooks.base import Hook
from jaxtrain.train.manifest import read_manifest
from jaxtrain.train.trained import trained_model


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Told(Hook):
    """Measures what it was told, from the first step on."""

    losses: tuple[float, ...]

    @property
    def name(self) -> str:
        return "told"

    def measures(self, averages, validation):
        return ("validation_loss",)

    def after_step(self, run, state, hook_state):
        run.write({"validation_loss": self.losses[run.step - 1]})
        return state, hook_state


STOP = EarlyStop(patience=3, margin=0.1)
HOOKS = (
    STOP,
    Told(losses=(3.0, 2.0, 1.0, 0.95, float("nan"), 1.5, 0.1, -1.0, -2.0, -3.0, -4.0, -5.0)),
    Checkpoint(every_steps=1, keep_last=1),
)


@pytest.fixture(scope="module")
def stopped(data, tmp_path_factory):
    """A run whose loss is lowest, by more than the margin, at step 3, and its folder. Step 4 has the least loss.

    It was killed after step 5, in the middle of the hook's waiting.
    """
    config, folder = runs.tiny_run(data, hooks=HOOKS), tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(runs.Crash):
        runs.train(dataclasses.replace(config, hooks=(*HOOKS, runs.CrashAfter(step=5))), folder)
    return config, folder, runs.train(config, folder)


def _names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def _at(config, folder, **which):
    parts = {"model": config.model, "optimizer": config.optimizer, "hooks": config.hooks, "mesh": config.mesh.build()}
    return trained_model(RunFolder(folder), **parts, **which)


def test_a_run_that_no_longer_improves_is_ended_and_leaves_its_last_and_its_best(stopped, whole):
    _, folder, result = stopped
    assert (result.finished, result.step) == (True, 6) and "1.0000, that of step 3" in result.ended
    assert runs.losses(folder) == whole[:6]
    assert _names(folder) == ["4", "6"]
    assert read_manifest(folder / "checkpoints" / "4").measured == {"validation_loss": 0.95}
    assert [read_manifest(folder / "checkpoints" / name).ended for name in ("4", "6")] == [None, result.ended]


def test_it_stays_ended_until_its_hook_is_changed(stopped, tmp_path, whole):
    config, folder, _ = stopped
    again = shutil.copytree(folder, tmp_path / "run")
    result = runs.train(config, again)
    assert result.finished and result.ended and not result.numbers and _names(again) == ["4", "6"]
    patient = (dataclasses.replace(STOP, patience=4), *HOOKS[1:])
    assert runs.train(dataclasses.replace(config, hooks=patient), again).ended is None
    assert runs.losses(again) == whole[:12]


def test_a_step_and_the_best_are_read_by_name(stopped):
    config, folder, result = stopped
    assert_close(runs.host_copy(_at(config, folder)[1]), runs.host_copy(result.state.model), EXACT)
    step, best = _at(config, folder, best=True)
    assert step == 4
    assert_close(runs.host_copy(_at(config, folder, step=4)[1]), runs.host_copy(best), EXACT)
    with pytest.raises(AssertionError):
        assert_close(runs.host_copy(best), runs.host_copy(result.state.model), EXACT)


def test_what_is_not_there_is_not_replaced_by_another(stopped, data, tmp_path):
    config, folder, _ = stopped
    with refused(ValueError, "step 5", "4, 6"):
        _at(config, folder, step=5)
    damaged = shutil.copytree(folder, tmp_path / "run")
    (damaged / "checkpoints" / "4" / "data" / "metadata").write_text("{")
    for which in ({"step": 4}, {"best": True}):
        with refused(ValueError, damaged / "checkpoints" / "4", "data/metadata", "damaged"):
            _at(config, damaged, **which)
    with refused(ValueError, "best_by"):
        _at(dataclasses.replace(config, hooks=(Checkpoint(every_steps=1, best_by=None),)), folder, best=True)
    with refused(ValueError, "validation_bleu"):
        _at(
            dataclasses.replace(config, hooks=(Checkpoint(every_steps=1, best_by="validation_bleu"),)),
            folder,
            best=True,
        )


def test_a_run_without_hooks_saves_every_ten_minutes_and_its_last_step(data, tmp_path, whole, monkeypatch, capsys):
    seconds = [0.0]
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: seconds[0]))

    def look(run, state):
        seconds[0] += 200  # a step
        if run.step == 5:
            raise runs.Crash

    with pytest.raises(runs.Crash):
        runs.train(runs.tiny_run(data, steps=6, hooks=(runs.Watch(look=look),)), tmp_path / "run")
    assert _names(tmp_path / "run") == ["3"]
    assert "a checkpoint is saved every 10 minutes" in capsys.readouterr().out
    runs.train(runs.tiny_run(data, steps=6, hooks=()), tmp_path / "run")
    assert "going on from the checkpoint of step 3" in capsys.readouterr().out
    assert runs.losses(tmp_path / "run") == whole[:6] and _names(tmp_path / "run") == ["3", "6"]
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(lines[:5]))
    assert runs.tiny_run(data, steps=6, hooks=()).trainer(tmp_path / "run").find_start() is None, (
        "killed before its end"
    )


@pytest.mark.parametrize(
    ("hooks", "facts"),
    [
        ((STOP,), ("hooks[0]", "validation_loss", "Evaluate")),
        ((Evaluate(every_steps=1), EarlyStop(by="loss")), ("hooks[1]", "'loss'", "validation_loss")),
        (
            (Evaluate(every_steps=1), Checkpoint(every_steps=1, best_by="validation_loss_ema")),
            ("hooks[1]", "'validation_loss_ema'"),
        ),
    ],
    ids=["nothing is measured", "another number", "an average that is not kept"],
)
def test_a_number_that_no_hook_measures_is_refused(hooks, facts, data):
    with refused(ValueError, *facts):
        runs.tiny_run(data, hooks=hooks)


def test_averages_are_measured_and_may_be_gone_by(data):
    by = Checkpoint(every_steps=1, best_by="validation_loss_ema")
    runs.tiny_run(data, hooks=(Evaluate(every_steps=1), ExponentialMovingAverage(), by))


@pytest.mark.parametrize("wrong", [{"patience": 0}, {"margin": -0.5}])
def test_early_stopping_out_of_range_is_refused(wrong):
    [(key, value)] = wrong.items()
    with refused(ValueError, f"{key}={value}"):
        EarlyStop(**wrong)


def test_losses_of_other_text_are_not_gone_by_in_phases_of_other_lengths(data):
    first = dataclasses.replace(runs.tiny_run(data).phases[0], steps=2)
    phases = (first, dataclasses.replace(first, sequence_length=first.sequence_length // 2))
    with refused(ValueError, "hooks[1]", "early_stop", "sequence_length"):
        runs.tiny_run(data, phases=phases, hooks=(Evaluate(every_steps=1), EarlyStop()))
