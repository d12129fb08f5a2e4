"""Checkpoints of a run: Orbax, written in the background, committed atomically, checked before they are used.

A checkpoint holds the items `params`, `progress` (optimizer state and counters), `data` (iterator state), one item a
hook with state, and `manifest.json`: the size and CRC-32 of every file, written last. One without a manifest was never
finished; one that does not match it is damaged. Either is named and passed over for the one before it.
"""

import json
import logging
import shutil
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as managers

from jaxtrain.shapes import ParamTree
from jaxtrain.train.state import TrainState

MANIFEST = "manifest.json"
log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; the last good one is still there."""


class Snapshot(NamedTuple):
    """Everything a checkpoint holds. Hooks map a name to a tree of arrays; `data` is JSON."""

    state: TrainState
    data: dict
    hooks: dict[str, ParamTree]


@dataclass(frozen=True, kw_only=True, slots=True)
class Retention:
    """Keep the last `keep_last` checkpoints, and every one at a multiple of `keep_every_steps`."""

    keep_last: int
    keep_every_steps: int | None

    def policy(self) -> managers.PreservationPolicy:
        last = managers.LatestN(self.keep_last)
        if self.keep_every_steps is None:
            return last
        return managers.AnyPreservationPolicy([last, managers.EveryNSteps(self.keep_every_steps)])


class Checkpoints:
    """The checkpoints of one run folder."""

    def __init__(self, folder: Path, retention: Retention | None = None):
        self.folder = folder.absolute()
        self._sealing: threading.Thread | None = None
        self._failure: CheckpointError | None = None
        options = ocp.CheckpointManagerOptions(
            preservation_policy=retention.policy() if retention else None,
            read_only=retention is None,
            create=retention is not None,
            enable_async_checkpointing=retention is not None,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, step: int, snapshot: Snapshot) -> None:
        """Copy the snapshot to the host and write it in the background.

        Raises:
            CheckpointError: this or the previous save failed, the disk being full perhaps.
        """
        progress = snapshot.state._replace(params={})
        items = {
            "params": ocp.args.StandardSave(snapshot.state.params),
            "progress": ocp.args.StandardSave(progress),
            "data": ocp.args.JsonSave(snapshot.data),
            **{f"hook_{name}": ocp.args.StandardSave(tree) for name, tree in snapshot.hooks.items()},
        }
        self._join()
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        self._sealing = threading.Thread(target=self._seal, args=(step,), name=f"seal-{step}")
        self._sealing.start()

    def check(self) -> None:
        """Raise CheckpointError if a save in the background has failed."""
        if self._sealing and not self._sealing.is_alive():
            self._join()

    def close(self) -> None:
        """Wait for the save in flight and let go of the folder."""
        self._join()
        self._manager.close()

    def _join(self) -> None:
        if self._sealing:
            self._sealing.join()
            self._sealing = None
        if self._failure:
            raise self._failure

    def _seal(self, step: int) -> None:
        """Wait in the background until a checkpoint is committed, then write its manifest."""
        try:
            self._manager.wait_until_finished()
            if jax.process_index() == 0:
                folder = self.folder / str(step)
                temporary = folder / f"{MANIFEST}.tmp"
                temporary.write_text(json.dumps(_digests(folder), indent=0, sort_keys=True))
                temporary.rename(folder / MANIFEST)
        except Exception as error:  # whatever it was, the step loop must hear of it
            self._failure = CheckpointError(
                f"could not write checkpoint {step} to {self.folder}: {_root_cause(error)}. "
                f"Earlier checkpoints are unharmed; free some space or choose another run folder, then run again."
            )
            self._failure.__cause__ = error

    def steps(self) -> list[int]:
        """Return the steps with a checkpoint, sound or not."""
        return sorted(self._manager.all_steps())

    def latest_sound(self) -> int | None:
        """Return the newest step whose files are all as they were written; say which were passed over and why."""
        for step in reversed(self.steps()):
            fault = _fault(self.folder / str(step))
            if fault is None:
                return step
            log.warning("checkpoint %s is refused: %s; trying the one before it", self.folder / str(step), fault)
        return None

    def discard_after(self, step: int) -> None:
        """Remove checkpoints later than a step: damaged ones that were passed over, about to be written anew."""
        for later in [s for s in self.steps() if s > step]:
            if jax.process_index() == 0:
                shutil.rmtree(self.folder / str(later), ignore_errors=True)
        self._manager.reload()

    def restore_params(self, step: int, target: ParamTree) -> ParamTree:
        """Return the parameters of a step in the layout of `target` (ShapeDtypeStructs with shardings)."""
        args = ocp.args.Composite(params=ocp.args.StandardRestore(target))
        return self._manager.restore(step, args=args)["params"]

    def restore_state(self, step: int, target: TrainState) -> TrainState:
        """Return the training state of a step in the layout of `target`."""
        progress = ocp.args.StandardRestore(target._replace(params={}))
        args = ocp.args.Composite(params=ocp.args.StandardRestore(target.params), progress=progress)
        found = self._manager.restore(step, args=args)
        return found["progress"]._replace(params=found["params"])

    def restore_data(self, step: int) -> dict:
        return self._manager.restore(step, args=ocp.args.Composite(data=ocp.args.JsonRestore()))["data"]

    def restore_hook(self, step: int, name: str, target: ParamTree) -> ParamTree | None:
        """Return a hook's state in the layout of `target`, or None if the step has none of that name."""
        item = f"hook_{name}"
        if not (self.folder / str(step) / item).is_dir():
            return None
        args = ocp.args.Composite(**{item: ocp.args.StandardRestore(target)})
        return self._manager.restore(step, args=args)[item]


def _digests(folder: Path) -> dict[str, list[int]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(MANIFEST))
    return {str(path.relative_to(folder)): [path.stat().st_size, _crc(path)] for path in files}


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def _fault(folder: Path) -> str | None:
    """Say what is wrong with a checkpoint's files; None if nothing is."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return "it was never finished (no manifest.json)"
    try:
        expected = json.loads(manifest.read_text())
    except ValueError:
        return "its manifest.json cannot be read"
    for name, (size, crc) in expected.items():
        path = folder / name
        if not path.is_file():
            return f"its file {name} is missing"
        if path.stat().st_size != size or _crc(path) != crc:
            return f"its file {name} is damaged"
    return None


def _root_cause(error: BaseException) -> str:
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
