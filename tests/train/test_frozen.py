"""Frozen weights on disk: written once, referred to by checkpoints, checked, and removed with the last of them."""

from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
from messages import refused
from runs import content
from tolerances import EXACT, assert_close

from jaxtrain.shapes import ModelState
from jaxtrain.train.checkpoint import Checkpoints, Retention, Snapshot
from jaxtrain.train.frozen import fingerprint
from jaxtrain.train.manifest import read_manifest
from jaxtrain.train.state import TrainState, state_of

TX = optax.adam(1e-3)


def _state(value: float, base: float = 0.0) -> TrainState:
    model = ModelState({"w": jnp.full((8,), value)}, {"base": jnp.arange(16.0) + base}, {"load": jnp.full((4,), value)})
    return state_of(model, TX)


def _target(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _save(checkpoints: Checkpoints, step: int, base: float = 0.0) -> None:
    checkpoints.save(step, Snapshot(_state(step, base), {}, {}))


def test_many_checkpoints_write_a_frozen_tree_once(tmp_path):
    with Checkpoints(tmp_path, Retention(keep_last=3)) as checkpoints:
        _save(checkpoints, 1)
        checkpoints.check(wait=True)
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "frozen").rglob("*")}
        for step in range(2, 11):
            _save(checkpoints, step)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "frozen").rglob("*")}
    assert [path.name for path in (tmp_path / "frozen").iterdir()] == [fingerprint(_state(0).model.frozen)]
    restored = Checkpoints(tmp_path).restore_state(10, _target(_state(0)))
    assert_close(restored, _state(10), EXACT)


def test_a_tree_goes_with_the_last_checkpoint_that_refers_to_it(tmp_path):
    with Checkpoints(tmp_path, Retention(keep_last=2)) as checkpoints:
        _save(checkpoints, 1, base=1.0)
        _save(checkpoints, 2, base=2.0)
        checkpoints.check(wait=True)
        assert len(list((tmp_path / "frozen").iterdir())) == 2
        _save(checkpoints, 3, base=2.0)
    assert [path.name for path in (tmp_path / "frozen").iterdir()] == [read_manifest(tmp_path / "3").frozen]


def test_trees_go_although_the_next_save_has_begun(tmp_path):
    with Checkpoints(tmp_path, Retention(keep_last=1)) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.begin(step)  # as a run does before the save in flight is sealed
            _save(checkpoints, step, base=step)
    assert [path.name for path in (tmp_path / "frozen").iterdir()] == [read_manifest(tmp_path / "3").frozen]


def test_a_tree_that_is_damaged_is_written_again_before_valid_checkpoints_go(tmp_path):
    with Checkpoints(tmp_path, Retention(keep_last=2)) as checkpoints:
        _save(checkpoints, 1, base=1.0)
        _save(checkpoints, 2, base=2.0)
    _damage(tmp_path, 2)
    (tmp_path / "frozen" / "0123.saving").mkdir()  # of a process that was killed
    with Checkpoints(tmp_path, Retention(keep_last=1)) as checkpoints:
        assert checkpoints.latest_valid() == 1
        checkpoints.clear_after(1)
        _save(checkpoints, 2, base=2.0)
    assert Checkpoints(tmp_path).latest_valid() == 2
    assert_close(Checkpoints(tmp_path).restore_state(2, _target(_state(0))), _state(2, base=2.0), EXACT)
    assert not list((tmp_path / "frozen").glob("*.saving"))


def _damage(folder: Path, step: int) -> str:
    """Cut the largest file of the frozen tree of a checkpoint; return the tree's name."""
    name = read_manifest(folder / str(step)).frozen
    file = max((folder / "frozen" / name).rglob("d/*"), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])
    return name


def test_a_tree_that_went_and_comes_back_is_written_again(tmp_path):
    with Checkpoints(tmp_path, Retention(keep_last=1)) as checkpoints:
        for step, base in enumerate((1.0, 2.0, 1.0), 1):
            _save(checkpoints, step, base=base)
    assert Checkpoints(tmp_path).latest_valid() == 3


def test_one_that_is_set_aside_keeps_what_it_refers_to(tmp_path):
    with Checkpoints(tmp_path, Retention(keep_last=1)) as checkpoints:
        _save(checkpoints, 1, base=1.0)
        checkpoints.check(wait=True)
        (tmp_path / "1").rename(tmp_path / "damaged-1-1")
        _save(checkpoints, 2, base=2.0)
    assert len(list((tmp_path / "frozen").iterdir())) == 2


def test_a_checkpoint_whose_frozen_weights_are_damaged_is_refused(tmp_path, caplog):
    with Checkpoints(tmp_path) as checkpoints:
        _save(checkpoints, 1, base=1.0)
        _save(checkpoints, 2, base=2.0)
    name = _damage(tmp_path, 2)
    before = content(tmp_path)
    assert Checkpoints(tmp_path).latest_valid() == 1
    assert f"of its frozen weights, frozen/{name}, its file tree/" in caplog.text and "is damaged" in caplog.text
    assert content(tmp_path) == before


@pytest.mark.parametrize(("saved", "wanted"), [(True, False), (False, True)])
@pytest.mark.parametrize(("collection", "said"), [("frozen", "frozen weights"), ("buffers", "buffers")])
def test_a_model_without_a_collection_does_not_take_that_of_one_with_it(collection, said, saved, wanted, tmp_path):
    def state(has: bool) -> TrainState:
        return _state(1) if has else state_of(_state(1).model._replace(**{collection: {}}), TX)

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, Snapshot(state(saved), {}, {}))
    with refused(ValueError, tmp_path / "1", said):
        Checkpoints(tmp_path).restore_state(1, _target(state(wanted)))
