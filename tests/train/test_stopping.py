"""Asked to stop, a run in this process saves and returns; asked again it goes on. And a trace on request."""

import gzip
import json
import os
import signal

import jax
import numpy as np
import pytest
import runs
from messages import refused

from jaxtrain.train import distributed, stopping
from jaxtrain.train.folder import SaveError
from jaxtrain.train.stopping import SIGNALS, Decision, Stop


@pytest.fixture
def attached():
    """The tests may have been started by `nohup`, under which a run ignores a hangup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_run_asked_to_stop_saves_and_goes_on_exactly(number, data, whole, attached, tmp_path):
    def look(run, state):
        if run.step == 4:
            signal.raise_signal(number)

    handlers = [signal.getsignal(one) for one in SIGNALS]
    result = runs.train(runs.tiny_run(data, hooks=(runs.Watch(look=look),)), tmp_path / "run")
    assert (result.finished, result.step, int(result.state.step)) == (False, 4, 4)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["4"]
    assert [signal.getsignal(one) for one in SIGNALS] == handlers
    assert runs.train(runs.tiny_run(data), tmp_path / "run").finished
    assert runs.losses(tmp_path / "run") == whole[:12]


def test_a_second_interrupt_does_not_wait(data, tmp_path):
    def look(run, state):
        if run.step == 4:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        runs.train(runs.tiny_run(data, hooks=(runs.Watch(look=look),)), tmp_path / "run")


@pytest.fixture
def nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_hangs_up_does_not_stop_a_run_that_ignores_it(nohup):
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.decided()


@pytest.fixture
def several(monkeypatch):
    """This process takes itself for one of two; what it asks of its devices stays as it is."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "anywhere", bool)


def _failure() -> SaveError:
    return SaveError("samples could not be written", OSError(28, "No space left on device"))


def test_one_of_several_processes_that_cannot_write_goes_on_until_all_know(several):
    stop = Stop()
    with stop.reporting():
        raise _failure()
    assert not stop.decided()  # asks
    with refused(SaveError, "samples", "No space left on device"):
        stop.decided()
    with refused(SaveError, "samples", "No space left on device"):
        stop.settle()


def test_a_process_that_could_write_ends_with_the_one_that_could_not(several, monkeypatch):
    stop = Stop()
    monkeypatch.setattr(stopping, "_greatest", lambda number: np.int32(max(number, Decision.FAIL)))
    assert not stop.decided()
    with refused(SaveError, "another process"):
        stop.decided()


def test_several_processes_save_and_stop_when_one_is_asked_to(several, monkeypatch):
    stop = Stop()
    stop.settle()
    assert [stop.decided(save=True), stop.decided(save=True)] == [Decision.GO_ON, Decision.SAVE]
    assert stop.decided() is Decision.GO_ON, "a save that was asked for twice while it was decided is made once"
    stop._ask(signal.SIGTERM, None)
    assert [stop.decided(), stop.decided(save=True)] == [Decision.GO_ON, Decision.STOP]


def test_a_single_process_that_cannot_write_ends_at_once():
    with pytest.raises(SaveError), Stop().reporting():
        raise _failure()


def test_a_profile_is_one_trace_of_so_many_steps(data, tmp_path):
    config = runs.tiny_run(data, steps=6, save_every=6)
    config.trainer(tmp_path / "run", profile_steps=2).train()
    (trace,) = (tmp_path / "run" / "profile").rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert sorted(event["args"]["step_num"] for event in events if event.get("name") == "train") == ["2", "3"]
