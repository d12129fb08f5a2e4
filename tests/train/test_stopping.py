"""Asked to stop, a run in this process saves and returns; asked again it goes on. And a trace on request."""

import gzip
import json
import os
import signal

import pytest
import runs


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_asked_to_stop_saves_and_goes_on_exactly(number, data, whole, tmp_path):
    def look(run, state):
        if run.step == 4:
            os.kill(os.getpid(), number)

    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    result = runs.train(runs.tiny_run(data, hooks=(runs.Watch(look=look),)), tmp_path / "run")
    assert (result.finished, result.step, int(result.state.step)) == (False, 4, 4)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["4"]
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert runs.train(runs.tiny_run(data), tmp_path / "run").finished
    assert runs.losses(tmp_path / "run") == whole[:12]


def test_a_second_interrupt_does_not_wait(data, tmp_path):
    def look(run, state):
        if run.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        runs.train(runs.tiny_run(data, hooks=(runs.Watch(look=look),)), tmp_path / "run")


def test_a_profile_is_one_trace_of_so_many_steps(data, tmp_path):
    config = runs.tiny_run(data, steps=6, save_every=6)
    config.trainer(tmp_path / "run", profile_steps=2).train()
    (trace,) = (tmp_path / "run" / "profile").rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert sorted(event["args"]["step_num"] for event in events if event.get("name") == "train") == ["2", "3"]
