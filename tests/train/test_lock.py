"""One run in a folder: a second is refused and changes nothing, and a lock whose holder is gone is taken over."""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
import runs
from messages import check, refusal, refused

from jaxtrain.train import lock
from jaxtrain.train.lock import LOCK, RunLock

HOLD = "import sys; from pathlib import Path; from jaxtrain.train.lock import RunLock\n"
HOLD += "with RunLock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def test_a_second_run_is_refused_at_once_and_disturbs_nothing(data, whole, tmp_path, capsys):
    folder, lines = tmp_path / "run", []
    config = runs.write_config(runs.tiny_run(data), tmp_path / "tiny.gin")

    def second(run, state):
        if run.step == 6:
            run.checkpoints.check(wait=True)  # that of step 5
            before = runs.content(folder)
            for options in ([], ["--overwrite"], ["--allow-config-change", "--set", "seed=1"]):
                lines.append(refusal(capsys, "train", config, "--run", folder, *options))
            with pytest.raises(ValueError, match="is in use by process"):
                runs.train(runs.tiny_run(data), folder)
            assert runs.content(folder) == before

    hooks = (*runs.tiny_run(data).hooks, runs.Watch(look=second))
    assert runs.train(runs.tiny_run(data, hooks=hooks), folder).finished
    assert runs.losses(folder) == whole[:12]
    assert len(lines) == 3
    who = f"process {os.getpid()} on {socket.gethostname()}, since "
    for line in lines:
        check(line, folder, who, varies={"<process>": rf"{who}\d{{4}}-\d\d-\d\dT[\d:]*"})
    assert not (folder / LOCK).exists()


def test_a_lock_holds_until_its_process_is_gone_and_is_then_taken_over(tmp_path, caplog):
    folder = tmp_path / "new" / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(ValueError, match=f"process {holder.pid} on "), RunLock(folder):
        pass
    assert json.loads((folder / LOCK).read_text())["process"] == holder.pid
    holder.kill()
    assert holder.wait() == -signal.SIGKILL
    holder.stdin.close(), holder.stdout.close()
    with RunLock(folder):
        assert f"process {holder.pid} on {socket.gethostname()}" in caplog.text and "is gone" in caplog.text
        assert json.loads((folder / LOCK).read_text())["process"] == os.getpid()
    assert list(folder.iterdir()) == []


def test_folders_that_nothing_was_written_into_do_not_stay(tmp_path):
    (tmp_path / "runs").mkdir()
    with RunLock(tmp_path / "runs" / "new" / "run"):
        pass
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_lock_may_be_entered_again_by_who_holds_it(tmp_path):
    own = RunLock(tmp_path)
    with own:
        with own:
            pass
        assert (tmp_path / LOCK).exists()
        with pytest.raises(ValueError, match="is in use"), RunLock(tmp_path):
            pass
    with RunLock(tmp_path):
        pass


def test_a_lock_is_let_go_where_the_run_fails(tmp_path):
    with contextlib.suppress(KeyError), RunLock(tmp_path):
        raise KeyError
    assert not (tmp_path / LOCK).exists()


def _elsewhere(path) -> None:
    path.write_text(json.dumps({"host": "another-machine", "process": os.getpid(), "began": "2026-01-01T00:00:00"}))


def test_a_lock_of_another_machine_counts_as_long_as_it_is_touched(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(lock, "WATCH_SECONDS", 0.4)
    path, ended = tmp_path / LOCK, threading.Event()
    _elsewhere(path)

    def touch():
        while not ended.wait(0.01):
            os.utime(path)

    there = threading.Thread(target=touch)
    there.start()
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"process {os.getpid()} on another-machine"), RunLock(tmp_path):
        pass
    assert path.read_bytes() == before
    ended.set()
    there.join()
    with RunLock(tmp_path):
        assert "on another-machine, since 2026-01-01T00:00:00 is gone" in caplog.text


def test_a_holder_touches_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(lock, "WATCH_SECONDS", 20.0)
    with RunLock(tmp_path):
        assert lock._is_touched(tmp_path / LOCK)


def test_where_the_file_system_knows_no_locks_the_process_decides(tmp_path, monkeypatch):
    def refuse(file, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with RunLock(tmp_path), pytest.raises(ValueError, match="is in use by process"), RunLock(tmp_path):
        pass
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / LOCK).write_text(json.dumps(lock.Holder(socket.gethostname(), gone.pid, "")._asdict()))
    with RunLock(tmp_path):
        pass


@pytest.mark.parametrize("left", ["", "{", "[]", '{"host": 1}', "\xff"])
def test_a_lock_that_was_not_written_whole_is_that_of_a_killed_process(left, tmp_path):
    (tmp_path / LOCK).write_text(left)
    with RunLock(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()


def test_a_file_removed_by_its_holder_is_not_taken_for_the_lock(tmp_path, monkeypatch):
    """Between opening a lock and locking it, its holder may let it go, and a third process take a new one."""
    path, first = tmp_path / LOCK, []

    def flock(file, operation):
        if not first:
            first.append(file)
            path.unlink()
        return real(file, operation)

    real = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", flock)
    with RunLock(tmp_path):
        assert json.loads(path.read_text())["process"] == os.getpid()


def test_where_the_first_process_is_refused_all_are(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    monkeypatch.setattr("jaxtrain.train.distributed.anywhere", lambda refused: True)
    with refused(ValueError, "another process"), RunLock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
