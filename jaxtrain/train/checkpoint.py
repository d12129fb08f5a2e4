"""Checkpoints of a run: Orbax, written in the background, committed atomically, checked before they are used.

A checkpoint is a folder named by its step, with the items `params`, `progress` (optimizer state and counters), `data`
(how far it was read) and one for each hook with a state, and a manifest, written last. One whose files do not match the
manifest is named and passed over for the one before it. An older one is removed only when a newer one has its manifest,
which is why Orbax's own CheckpointManager, which removes before that, is not used.
"""

import logging
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp

from jaxtrain.shapes import ParamTree
from jaxtrain.train import distributed, stragglers
from jaxtrain.train.folder import SaveError
from jaxtrain.train.manifest import MANIFEST, fault, is_finished, write_manifest
from jaxtrain.train.state import TrainState

log = logging.getLogger(__name__)


class Snapshot(NamedTuple):
    """Everything a checkpoint holds. Hooks map a name to a tree of arrays; `data` is JSON."""

    state: TrainState
    data: dict
    hooks: dict[str, ParamTree]


@dataclass(frozen=True, kw_only=True, slots=True)
class Retention:
    """Keep the last `keep_last` checkpoints, and every one at a multiple of `keep_every_steps`."""

    keep_last: int = 2
    keep_every_steps: int | None = None

    def keeps(self, step: int, *, newer: int) -> bool:
        """Tell whether to keep the checkpoint of a step, given the number of newer ones."""
        return newer < self.keep_last or (self.keep_every_steps is not None and step % self.keep_every_steps == 0)


class Checkpoints:
    """The checkpoints of one run folder. Close it, or use it in a `with`, to wait for the save in flight."""

    def __init__(self, folder: Path, retention: Retention = Retention()):
        self.folder = folder.absolute()
        self._retention = retention
        self._orbax = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
        self._sealing: threading.Thread | None = None
        self._failure: SaveError | None = None

    # -- writing ------------------------------------------------------------------------------------------------

    def save(self, step: int, snapshot: Snapshot) -> None:
        """Copy the snapshot to the host and write it in the background.

        Raises:
            SaveError: this or the previous save failed, the disk being full perhaps.
        """
        self.check(wait=True)
        stragglers.silence()
        items = {
            "params": ocp.args.StandardSave(snapshot.state.params),
            "progress": ocp.args.StandardSave(snapshot.state._replace(params={})),
            "data": ocp.args.JsonSave(snapshot.data),
            **{_item(name): ocp.args.StandardSave(tree) for name, tree in snapshot.hooks.items()},
        }
        try:
            self._orbax.save(self._path(step), args=ocp.args.Composite(**items), force=True)
        except OSError as error:
            raise self._failed(step, error) from error
        self._sealing = threading.Thread(target=self._seal, args=(step,), name=f"seal-{step}")
        self._sealing.start()

    def _seal(self, step: int) -> None:
        """Wait in the background until a checkpoint is committed; write its manifest, remove what need not be kept."""
        try:
            self._orbax.wait_until_finished()
            if jax.process_index() == 0:
                write_manifest(self._path(step))
                self._prune()
        except Exception as error:  # whatever it was, the step loop must hear of it
            self._failure = self._failed(step, error)
            self._failure.__cause__ = error

    def _prune(self) -> None:
        """Remove what need not be kept; where that fails nothing is lost but room, and the run goes on."""
        finished = [step for step in self.steps() if is_finished(self._path(step))]
        for newer, step in enumerate(reversed(finished)):
            if not self._retention.keeps(step, newer=newer):
                try:
                    _remove(self._path(step))
                except OSError as error:
                    log.warning("checkpoint %s is no longer needed but cannot be removed: %s", self._path(step), error)

    def _failed(self, step: int, error: BaseException) -> SaveError:
        return SaveError(f"checkpoint {step} could not be written to {self.folder}", error)

    def check(self, *, wait: bool = False) -> None:
        """Raise SaveError if the save in the background has failed; `wait` for its end, or look only."""
        if self._sealing and (wait or not self._sealing.is_alive()):
            self._sealing.join()
            self._sealing = None
        if self._failure:
            failure, self._failure = self._failure, None
            raise failure

    def close(self) -> None:
        try:
            self.check(wait=True)
        finally:
            self._orbax.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            self.close()
        except SaveError:
            if error is None:  # or else the error on its way tells the user more
                raise

    # -- finding ------------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """Return the steps with a checkpoint, sound or not, oldest first."""
        return sorted(int(path.name) for path in self._entries() if path.name.isdecimal())

    def _entries(self) -> list[Path]:
        """Return the folders of checkpoints, those that Orbax had begun (5.orbax-checkpoint-tmp) among them."""
        return [path for path in self.folder.glob("[0-9]*") if path.name.split(".")[0].isdecimal() and path.is_dir()]

    def latest_sound(self) -> int | None:
        """Return the newest step whose files are all as they were written; say which were passed over and why."""
        left = self.steps()
        while (step := distributed.of_first(max(left, default=-1))) >= 0:
            found = fault(self._path(step), part=jax.process_index(), parts=jax.process_count())
            if found:
                log.warning("checkpoint %s is refused: %s", self._path(step), found)
            if not distributed.anywhere(found is not None):
                return step
            left = [earlier for earlier in left if earlier < step]
        return None

    def resume(self) -> int | None:
        """Return the step to go on from, None for a run that begins; remove later and half-written checkpoints.

        Raises:
            ValueError: there are finished checkpoints, but none of them is sound.
        """
        step = self.latest_sound()
        finished = [str(step) for step in self.steps() if is_finished(self._path(step))]
        if step is None and distributed.anywhere(bool(finished)):
            raise ValueError(
                f"{self.folder}: none of the checkpoints ({', '.join(finished)}) is sound, so the run cannot go on; "
                f"bring back their files, or pass --overwrite to begin anew"
            )
        if jax.process_index() == 0:
            self._clear_after(-1 if step is None else step)
        return step

    def _clear_after(self, step: int) -> None:
        """Remove what is half-written, and what is later than a step: refused, and about to be written anew."""
        for path in self._entries():
            number, *temporary = path.name.split(".", 1)
            if temporary:
                log.warning("checkpoint %s is refused: it was never finished", path)
            if temporary or int(number) > step or not is_finished(path):
                _remove(path)

    def _path(self, step: int) -> Path:
        return self.folder / str(step)

    # -- reading ------------------------------------------------------------------------------------------------

    def has_progress(self, step: int) -> bool:
        """Tell a checkpoint of a run from one of parameters alone, such as imported ones."""
        return (self._path(step) / "progress").is_dir()

    def restore_params(self, step: int, target: ParamTree) -> ParamTree:
        """Return the parameters of a step in the layout of `target` (ShapeDtypeStructs with shardings)."""
        return self._restore(step, "params", target)

    def restore_state(self, step: int, target: TrainState) -> TrainState:
        """Return the training state of a step in the layout of `target`."""
        params = self._restore(step, "params", target.params)
        return self._restore(step, "progress", target._replace(params={}))._replace(params=params)

    def restore_hook(self, step: int, name: str, target: ParamTree) -> ParamTree | None:
        """Return a hook's state in the layout of `target`, or None if the step has none of that name."""
        there = (self._path(step) / _item(name)).is_dir()
        return self._restore(step, _item(name), target) if there else None

    def restore_data(self, step: int) -> dict:
        """Return the snapshot's `data`; {} for parameters alone."""
        if not self.has_progress(step):
            return {}
        return self._orbax.restore(self._path(step), args=ocp.args.Composite(data=ocp.args.JsonRestore()))["data"]

    def _restore(self, step: int, item: str, target: ParamTree) -> ParamTree:
        saved = ocp.StandardCheckpointHandler().metadata(self._path(step) / item).tree
        _check_fits(f"{self._path(step)}: its {item}", _shapes(saved), _shapes(target))
        args = ocp.args.Composite(**{item: ocp.args.StandardRestore(target)})
        return self._orbax.restore(self._path(step), args=args)[item]


def _shapes(tree: ParamTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape) for path, leaf in leaves}


def _check_fits(what: str, saved: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> None:
    for name in [*saved, *wanted]:
        if saved.get(name) != wanted.get(name):
            raise ValueError(
                f"{what} {name} is {saved.get(name, 'absent')} where the configuration has "
                f"{wanted.get(name, 'none')}; go back to the configuration it was made with, or pass --overwrite"
            )


def _item(hook: str) -> str:
    return f"hook_{hook}"


def _remove(folder: Path) -> None:
    """Remove a checkpoint; if killed meanwhile, what is left is one without a manifest."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
