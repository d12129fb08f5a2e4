"""Checkpoints on disk: written whole, checked before use, kept by the rules; the writer's failures are heard of."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tolerances import EXACT, assert_close

from jaxtrain.train import manifest
from jaxtrain.train.checkpoint import Checkpoints, Retention, Snapshot
from jaxtrain.train.folder import SaveError
from jaxtrain.train.manifest import write_manifest
from jaxtrain.train.state import TrainState, state_from_params

TX = optax.adam(1e-3)


def _state(value: float, size: int = 256) -> TrainState:
    return state_from_params({"w": jnp.full((8, size), value), "b": jnp.arange(8.0)}, TX)


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


def _data_file(folder: Path) -> Path:
    return max((path for path in folder.glob("params/**/d/*")), key=lambda path: path.stat().st_size)


def _flip_a_bit(folder: Path) -> str:
    path = _data_file(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return f"its file {path.relative_to(folder)} is damaged"


def _truncate(folder: Path) -> str:
    path = _data_file(folder)
    path.write_bytes(path.read_bytes()[:-1])
    return f"its file {path.relative_to(folder)} is damaged"


def _delete(folder: Path) -> str:
    path = _data_file(folder)
    path.unlink()
    return f"its file {path.relative_to(folder)} is missing"


def _break_manifest(folder: Path) -> str:
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text()[:-9])
    return "its file manifest.json is damaged"


def _no_manifest(folder: Path) -> str:
    (folder / "manifest.json").unlink()
    return "it was never finished"


HARM = (_flip_a_bit, _truncate, _delete, _break_manifest, _no_manifest)


def test_what_was_saved_comes_back(folder):
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.resume() == 3
        state = checkpoints.restore_state(3, _target(_state(0)))
        hook = checkpoints.restore_hook(3, "ema", _target({"w": jnp.zeros(4)}))
        assert checkpoints.restore_data(3) == {"rows": 3}
        assert checkpoints.restore_hook(3, "lawa", {}) is None
    assert_close(state, _state(3), EXACT)
    np.testing.assert_array_equal(hook["w"], np.full(4, 3.0))


@pytest.mark.parametrize("harm", HARM, ids=lambda harm: harm.__name__.strip("_"))
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_used(harm, folder, caplog):
    why = harm(folder / "3")
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest_sound() == 2
        assert f"checkpoint {folder / '3'} is refused: {why}" in caplog.text
        assert checkpoints.steps() == [1, 2, 3]  # a reader removes nothing
        assert checkpoints.resume() == 2
        assert checkpoints.steps() == [1, 2]
        np.testing.assert_array_equal(
            checkpoints.restore_params(2, _target(_state(0).params))["w"], _state(2).params["w"]
        )


def test_a_checkpoint_that_cannot_be_read_is_passed_over(folder, monkeypatch, caplog):
    def fail(path):
        if "3" in path.relative_to(folder).parts[:1]:
            raise OSError(5, "Input/output error")
        return read(path)

    read = manifest._digest
    monkeypatch.setattr(manifest, "_digest", fail)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest_sound() == 2
    assert "cannot be read (Input/output error)" in caplog.text


def test_what_a_killed_writer_leaves_is_named_and_removed(folder, caplog):
    left = shutil.copytree(folder / "3", folder / "4.orbax-checkpoint-tmp")
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.resume() == 3
    assert f"checkpoint {left} is refused: it was never finished" in caplog.text
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "3"]


def test_with_no_sound_checkpoint_left_the_run_is_refused(folder, caplog):
    for step in ("1", "2", "3"):
        _truncate(folder / step)
    with Checkpoints(folder) as checkpoints, pytest.raises(ValueError, match=r"\(1, 2, 3\) is sound.*--overwrite"):
        checkpoints.resume()
    assert caplog.text.count("is refused") == 3
    assert len(list(folder.iterdir())) == 3  # what can still be rescued is left


def test_a_run_killed_in_its_first_save_begins_anew(folder):
    for step in ("1", "2", "3"):
        _no_manifest(folder / step)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.resume() is None
        assert checkpoints.steps() == []


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

    def fail(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxtrain.train.checkpoint.write_manifest", fail)
    with pytest.raises(SaveError, match="No space left on device"), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, _snapshot(2))
    assert Checkpoints(tmp_path).latest_sound() == 1


def test_an_old_checkpoint_that_cannot_be_removed_does_not_end_the_run(tmp_path, monkeypatch, caplog):
    def refuse(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("jaxtrain.train.checkpoint._remove", refuse)
    with Checkpoints(tmp_path, Retention(keep_last=1)) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, _snapshot(step))
    assert f"checkpoint {tmp_path / '1'} is no longer needed but cannot be removed: [Errno 13]" in caplog.text
    assert Checkpoints(tmp_path).latest_sound() == 2


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
        Checkpoints(tmp_path).restore_params(1, _target(_state(0, 100_000).params)), _state(5, 100_000).params, EXACT
    )


def test_a_failed_save_is_heard_of_without_waiting_for_the_next(tmp_path, monkeypatch):
    def fail(folder):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("jaxtrain.train.checkpoint.write_manifest", fail)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, _snapshot(1))
    with pytest.raises(SaveError, match=f"checkpoint 1 could not be written to {tmp_path}: Input/output error"):
        while True:
            checkpoints.check()
    checkpoints.close()


def test_a_checkpoint_of_another_model_is_refused_with_the_reason(folder):
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(ValueError, match=r"/3: its params w is \(8, 256\) where the configuration has \(8, 128\)"):
            checkpoints.restore_state(3, _target(_state(0, size=128)))
        lion = state_from_params(_state(0).params, optax.lion(1e-3))
        with pytest.raises(
            ValueError, match=r"its progress opt_state.0.nu.b is \(8,\) where the configuration has none"
        ):
            checkpoints.restore_state(3, _target(lion))
        with pytest.raises(ValueError, match=r"its hook_ema w is \(4,\) where"):
            checkpoints.restore_hook(3, "ema", _target({"v": jnp.zeros(4)}))


def test_the_manifest_tells_every_file_of_a_checkpoint(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file").write_bytes(b"123456789")
    write_manifest(tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text()) == {
        "deep/file": [9, 0xCBF43926]
    }  # CRC-32's check value
