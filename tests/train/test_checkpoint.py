"""Checkpoints on disk, of any path: written whole, checked before use, kept by the rules; failures are heard of."""

import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from harm import HARM, truncate
from messages import check, refused
from runs import content, record_of_the_disk
from tolerances import EXACT, assert_close

from jaxtrain.shapes import ModelState
from jaxtrain.train import manifest
from jaxtrain.train.checkpoint import Checkpoints, Retention, Snapshot
from jaxtrain.train.folder import SaveError
from jaxtrain.train.manifest import write_manifest
from jaxtrain.train.state import TrainState, state_of

TX = optax.adam(1e-3)


def _state(value: float, size: int = 256) -> TrainState:
    return state_of(ModelState({"w": jnp.full((8, size), value), "b": jnp.arange(8.0)}), TX)


def _snapshot(value: float) -> Snapshot:
    return Snapshot(_state(value), {"rows": int(value)}, {"ema": {"w": jnp.full((4,), value)}})


def _target(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("three") / "checkpoints"
    with Checkpoints(folder, Retention(keep_last=3)) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, _snapshot(step))
    return folder


@pytest.fixture
def folder(three, tmp_path) -> Path:
    return shutil.copytree(three, tmp_path / "checkpoints")


def test_what_was_saved_comes_back(folder):
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest_valid() == 3
        state = checkpoints.restore_state(3, _target(_state(0)))
        hook = checkpoints.restore_hook(3, "ema", _target({"w": jnp.zeros(4)}))
        assert checkpoints.restore_data(3) == {"rows": 3}
        assert checkpoints.restore_hook(3, "lawa", {}) is None
    assert_close(state, _state(3), EXACT)
    np.testing.assert_array_equal(hook["w"], np.full(4, 3.0))


@pytest.mark.parametrize("harm", HARM, ids=lambda harm: harm.__name__)
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_used(harm, folder, caplog):
    facts = harm(folder / "3")
    left = content(folder / "3")
    names = {"<digest>": r"(?<=/d/)\w+"} if "/d/" in str(facts[0]) else None
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest_valid() == 2
        check(caplog.messages[-1], folder / "3", *facts, varies=names)
        assert checkpoints.steps() == [1, 2, 3]  # a reader changes nothing
        checkpoints.clear_after(2)
        assert checkpoints.steps() == [1, 2]
        check(caplog.messages[-1], folder / "3", "damaged-3-1")
        assert content(folder / "damaged-3-1") == left
        np.testing.assert_array_equal(
            checkpoints.restore_model(2, _target(_state(0).model)).params["w"], _state(2).params["w"]
        )


def test_a_read_error_that_passes_costs_no_checkpoint(folder, monkeypatch, caplog):
    def fail(path):
        if "3" in path.relative_to(folder).parts[:1]:
            raise OSError(5, "Input/output error")
        return read(path)

    read, before = manifest._digest, content(folder / "3")
    with monkeypatch.context() as failing, Checkpoints(folder) as checkpoints:
        failing.setattr(manifest, "_digest", fail)
        assert checkpoints.latest_valid() == 2
        check(caplog.messages[-1], folder / "3", "Input/output error", varies={"<file>": r"(?<=its file )\S+"})
        checkpoints.clear_after(2)
    assert content(folder / "damaged-3-1") == before
    (folder / "damaged-3-1").rename(folder / "3")
    assert Checkpoints(folder).latest_valid() == 3


def test_what_a_killed_process_leaves_is_named_and_removed(folder, caplog):
    left = [folder / name for name in ("4.saving", "4.saving.orbax-checkpoint-tmp", "5.orbax-checkpoint-tmp")]
    for path in (*left, folder / "0.removing"):
        shutil.copytree(folder / "3", path)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest_valid() == 3
        checkpoints.clear_after(3)
    for path in left:
        assert f"checkpoint {path} is refused: it was never finished" in caplog.text
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "3"]


def test_copies_and_what_was_renamed_by_hand_are_kept(folder):
    names = ["007", "3.bak", "3-copy", "damaged-2-1", "step_9", "٣", "3.orbax-checkpoint-tmp.bak"]
    for name in names:
        shutil.copytree(folder / "3", folder / name)
    with Checkpoints(folder, Retention(keep_last=1)) as checkpoints:
        assert checkpoints.latest_valid() == 3
        checkpoints.clear_after(3)
        checkpoints.save(4, _snapshot(4))
    assert sorted(path.name for path in folder.iterdir()) == sorted([*names, "4"])


def test_only_a_checkpoint_of_its_own_name_gives_way_to_newer_ones(folder):
    (folder / "2").rename(folder / "0")  # renamed: neither used nor removed
    with Checkpoints(folder, Retention(keep_last=1)) as checkpoints:
        checkpoints.save(4, _snapshot(4))
    assert checkpoints.steps() == [0, 4]


def test_what_has_the_name_of_a_new_checkpoint_is_set_aside(folder):
    truncate(folder / "3")
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(3, _snapshot(5))
    assert Checkpoints(folder).latest_valid() == 3
    assert (folder / "damaged-3-1").is_dir()


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (Retention(keep_last=1), [6]),
        (Retention(keep_last=3), [4, 5, 6]),
        (Retention(keep_last=1, keep_every_steps=2), [2, 4, 6]),
        (Retention(keep_last=2, keep_every_steps=4), [4, 5, 6]),
    ],
)
def test_the_last_ones_and_every_so_many_are_kept(retention, kept, tmp_path):
    with Checkpoints(tmp_path, retention) as checkpoints:
        for step in range(1, 7):
            checkpoints.save(step, Snapshot(_state(step, 1), {}, {}))
    assert checkpoints.steps() == kept


def test_the_only_checkpoint_is_not_removed_before_the_next_is_finished(tmp_path, monkeypatch):
    with Checkpoints(tmp_path, Retention(keep_last=1)) as checkpoints:
        checkpoints.save(1, _snapshot(1))

    def fail(folder, **facts):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxtrain.train.checkpoint.write_manifest", fail)
    with pytest.raises(SaveError, match="No space left on device"), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, _snapshot(2))
    assert Checkpoints(tmp_path).latest_valid() == 1


def test_an_old_checkpoint_that_cannot_be_removed_does_not_end_the_run(tmp_path, monkeypatch, caplog):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("jaxtrain.train.stored._remove", refuse)
    with Checkpoints(tmp_path, Retention(keep_last=1)) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, _snapshot(step))
    check(caplog.messages[-1], tmp_path / "1", "Permission denied")
    assert Checkpoints(tmp_path).latest_valid() == 2


def test_a_save_is_not_disturbed_by_steps_that_reuse_its_memory(tmp_path):
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 1, tree), donate_argnums=0)
    unsaved = _state(5.0, size=100_000).params
    step(unsaved)
    assert unsaved["w"].is_deleted()  # what is not being saved is written over
    state = _state(5.0, size=100_000)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, Snapshot(state, {}, {}))
        params = state.params
        for _ in range(5):
            params = step(params)
    assert_close(
        Checkpoints(tmp_path).restore_model(1, _target(_state(0, 100_000).model)), _state(5, 100_000).model, EXACT
    )


def test_a_failed_save_is_heard_of_without_waiting_for_the_next(tmp_path, monkeypatch):
    def fail(folder, **facts):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("jaxtrain.train.checkpoint.write_manifest", fail)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, _snapshot(1))
    with refused(SaveError, "checkpoint 1", tmp_path, "Input/output error"):
        while True:
            checkpoints.check()
    checkpoints.close()


def test_a_checkpoint_of_another_model_is_refused_with_the_reason(folder):
    with Checkpoints(folder) as checkpoints:
        with refused(ValueError, folder / "3", "params w", (8, 256), (8, 128)):
            checkpoints.restore_state(3, _target(_state(0, size=128)))
        lion = state_of(_state(0).model, optax.lion(1e-3))
        with refused(ValueError, folder / "3", "progress opt_state.0.nu.b", (8,)):
            checkpoints.restore_state(3, _target(lion))
        with refused(ValueError, folder / "3", "hook_ema w", (4,)):
            checkpoints.restore_hook(3, "ema", _target({"v": jnp.zeros(4)}))


def test_the_manifest_tells_every_file_of_a_checkpoint(tmp_path):
    folder = tmp_path / "12.saving"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "file").write_bytes(b"123456789")
    (folder / "deep" / "manifest.json").write_bytes(b"")
    write_manifest(folder)
    assert json.loads((folder / "manifest.json").read_text()) == {
        "checkpoint": "12",
        "layout": 2,
        "frozen": None,
        "measured": {},
        "ended": None,
        "stream": None,
        "files": {"deep/file": [9, 0xCBF43926], "deep/manifest.json": [0, 0]},  # CRC-32's check value
    }


NAMES = ("lr[3e-4]", "back\\slash", "a#b", "a?b", "a*b", "a%20b", "a b ", "Läufe 実験", "gs:/x", "[!a]**", "new\nline")


@pytest.mark.parametrize("name", [*NAMES, os.fsdecode(b"not utf-8 \xff")])
def test_a_folder_of_any_name_holds_checkpoints(name, tmp_path):
    folder = tmp_path / name / "checkpoints"
    with Checkpoints(folder, Retention(keep_last=1)) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, _snapshot(step))
    assert [path.name for path in folder.iterdir()] == ["2"]
    assert [path.name for path in tmp_path.iterdir()] == [Path(name).parts[0]]  # it was written there, and not beside
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest_valid() == 2
        assert_close(checkpoints.restore_state(2, _target(_state(0))), _state(2), EXACT)
        np.testing.assert_array_equal(checkpoints.restore_hook(2, "ema", _target({"w": jnp.zeros(4)}))["w"], 4 * [2.0])
        assert checkpoints.restore_data(2) == {"rows": 2}


@pytest.mark.parametrize(
    "lost", ["params/manifest.ocdbt", "progress/_METADATA", "hook_ema/manifest.ocdbt", "data/metadata"]
)
def test_a_save_that_could_not_be_restored_costs_no_older_one(lost, folder, monkeypatch):
    with (
        pytest.raises(SaveError, match="checkpoint 4 could not"),
        Checkpoints(folder, Retention(keep_last=1)) as checkpoints,
    ):
        wait = checkpoints._orbax.wait_until_finished

        def lose():
            wait()
            (folder / "4.saving" / lost).unlink(missing_ok=True)

        monkeypatch.setattr(checkpoints._orbax, "wait_until_finished", lose)
        checkpoints.save(4, _snapshot(4))
    assert Checkpoints(folder).steps() == [1, 2, 3]
    assert Checkpoints(folder).latest_valid() == 3


def test_a_save_that_cannot_begin_ends_at_once_and_leaves_no_thread_waiting(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    before = set(threading.enumerate())
    with (
        pytest.raises(SaveError, match="Not a directory|File exists"),
        Checkpoints(tmp_path / "checkpoints") as checkpoints,
    ):
        checkpoints.save(1, _snapshot(1))
    assert _waiting(before) == []


def _waiting(before: set[threading.Thread]) -> list[threading.Thread]:
    """Return the threads begun since that still keep the process from ending, after a minute at most.

    Idle workers end with the process. What Orbax has wait does so for 300 s, what it has end is gone at once.
    """
    end = time.monotonic() + 60
    while (left := _at_work(before)) and time.monotonic() < end:
        time.sleep(0.01)
    return left


def _at_work(before: set[threading.Thread]) -> list[threading.Thread]:
    frames = sys._current_frames()
    new = [thread for thread in set(threading.enumerate()) - before if not thread.daemon and thread.ident in frames]
    return [thread for thread in new if frames[thread.ident].f_code.co_name != "_worker"]


def test_a_folder_that_orbax_cannot_make_ends_the_save_at_once(tmp_path, monkeypatch):
    """Also where the first look found nothing wrong."""
    monkeypatch.setattr("jaxtrain.train.stored.begin_saving", lambda folder, step: None)
    (tmp_path / "checkpoints").write_text("a file")
    before = set(threading.enumerate())
    with pytest.raises(SaveError, match="Not a directory"), Checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, _snapshot(1))
    assert _waiting(before) == []


def test_no_process_saves_where_the_first_cannot_begin_to(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    monkeypatch.setattr("jaxtrain.train.distributed.anywhere", lambda failed: True)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(SaveError, match="checkpoint 1 .* another process"):
        checkpoints.begin(1)


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done = record_of_the_disk(monkeypatch)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, _snapshot(7))
    named = done.index(("rename", str(tmp_path / "7.saving"), str(tmp_path / "7")))
    flushed = {path.removeprefix(f"{tmp_path}/7.saving") for what, path, *_ in done[:named] if what == "fsync"}
    whole = [path for path in (tmp_path / "7").rglob("*") if path.name != "manifest.json"]
    assert {str(path).removeprefix(f"{tmp_path}/7") for path in whole} <= flushed
    assert any(path.startswith("/manifest.json.") for path in flushed)
    assert ("fsync", str(tmp_path)) in done[named:]
