"""The checkpoints of a run, written by Orbax in the background. They are checked once written, and again before use.

A checkpoint has the items `params`, `buffers` where the model has some, `progress` (optimizer state and counters),
`data` (how far it was read) and one for each hook with a state, and a manifest. Frozen weights are written once, beside
the checkpoints (frozen.py). A checkpoint gets its final name only when it was found to have all that a restore needs.
Older ones are removed after that. Orbax's own CheckpointManager removes them before, so it is not used. stored.py
describes the folder and the names in it.
"""

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxtrain.plain_path import plain_path
from jaxtrain.shapes import ModelState, ParamTree
from jaxtrain.surgery.layouts import as_now, as_saved
from jaxtrain.train import distributed, frozen, stored, stragglers
from jaxtrain.train.evaluation import VALIDATION_LOSS
from jaxtrain.train.folder import SaveError
from jaxtrain.train.manifest import fault, read_manifest, write_manifest
from jaxtrain.train.state import TrainState

Shapes = dict[str, tuple[int, ...]]  # of the leaves of an item, by their paths


class Snapshot(NamedTuple):
    """Everything a checkpoint holds. `hooks` has a tree of arrays by the hook's name; `data` is JSON."""

    state: TrainState
    data: dict
    hooks: dict[str, ParamTree]
    ended: str | None = None  # why a hook ends the run at this step
    stream: str | None = None  # what the phase reads; numbers that hooks measured of another one are of other text


@dataclass(frozen=True, kw_only=True, slots=True)
class Retention:
    """Keep the last `keep_last` checkpoints, all at a multiple of `keep_every_steps`, and the one with the least
    `best_by`, a number that a hook measured at its step (`stored.best`)."""

    keep_last: int = 2
    keep_every_steps: int | None = None
    best_by: str | None = VALIDATION_LOSS

    def keeps(self, step: int, *, newer: int, best: int | None) -> bool:
        """Tell whether to keep the checkpoint of a step, given the number of newer ones and the step of the best."""
        at_interval = self.keep_every_steps is not None and step % self.keep_every_steps == 0
        return newer < self.keep_last or at_interval or step == best


class Checkpoints:
    """The checkpoints of one run folder. Close it, or use it in a `with`, to wait for the current save."""

    def __init__(self, folder: Path, retention: Retention = Retention()):
        self.folder = folder.absolute()
        self._retention = retention
        ocp = _ocp()
        # Otherwise Orbax makes folders in the background. If it cannot make one, threads that need it wait for 300 s.
        options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
        handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(async_options=options))
        self._orbax = ocp.AsyncCheckpointer(handler, async_options=options)
        self._finishing: threading.Thread | None = None
        self._failure: SaveError | None = None
        self._saved_at = time.monotonic()  # or opened, before the first save
        self._valid_frozen: str | None = None  # the frozen tree of the last save, which is valid; others may be removed

    # -- writing ------------------------------------------------------------------------------------------------

    def begin(self, step: int) -> None:
        """Make the folder of a checkpoint. After a kill before `save`, it tells that the checkpoint was being saved.

        Raises:
            SaveError: it cannot be made.
        """
        try:
            distributed.by_first(lambda: stored.begin_saving(self.folder, step))
        except (OSError, ValueError) as error:  # ValueError: on the other processes
            raise self._failed(step, error) from error

    def save(self, step: int, snapshot: Snapshot, measured: Mapping[str, float] = MappingProxyType({})) -> None:
        """Copy the snapshot to the host and write it in the background. `measured` are numbers of this step.

        Raises:
            SaveError: this or the previous save failed, for example because the disk is full.
        """
        self.check(wait=True)
        stragglers.silence()
        ocp = _ocp()
        trees = {
            "params": snapshot.state.params,
            "progress": _progress(snapshot.state),
            **({"buffers": buffers} if (buffers := snapshot.state.model.buffers) else {}),
            **{_item(name): tree for name, tree in snapshot.hooks.items()},
        }
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        items["data"] = ocp.args.JsonSave(snapshot.data)
        self.begin(step)
        with contextlib.ExitStack() as until_finished:
            try:
                folder = until_finished.enter_context(plain_path(self.folder))
                path, reference = folder / stored.saving_name(step), self._write_frozen(snapshot.state.model.frozen)
                self._orbax.save(path, args=ocp.args.Composite(**items), force=True)
            except (OSError, ValueError) as error:
                raise self._failed(step, error) from error
            shapes = {name: _shapes(tree) for name, tree in trees.items()}
            manifest = functools.partial(
                write_manifest,
                frozen=reference,
                measured=dict(measured),
                ended=snapshot.ended,
                stream=snapshot.stream,
            )
            arguments = (step, path, shapes, manifest, until_finished.pop_all())
        self._finishing = threading.Thread(target=self._finish, args=arguments, name=f"finish-{step}")
        self._finishing.start()
        self._saved_at = time.monotonic()

    @property
    def seconds_since_save(self) -> float:
        """The time since the last save, or since the folder was opened."""
        return time.monotonic() - self._saved_at

    def _write_frozen(self, tree: ParamTree) -> str | None:
        """Write a frozen tree, unless a valid copy is there. Return its name in the folder, None for no tree."""
        if not tree:
            return None
        name = frozen.fingerprint(tree)
        if name == self._valid_frozen:
            return name
        self._valid_frozen = name
        if not distributed.anywhere(fault(self.folder / frozen.FOLDER / name) is not None):
            return name
        with plain_path(self.folder) as plain, _ocp().StandardCheckpointer() as checkpointer:
            saving = plain / frozen.FOLDER / f"{name}.saving"
            checkpointer.save(saving / "tree", tree, force=True)
            checkpointer.wait_until_finished()
            distributed.by_first(lambda: frozen.finish(saving))
        return name

    def _finish(
        self,
        step: int,
        path: Path,
        shapes: dict[str, Shapes],
        manifest: Callable[[Path], None],
        until_finished: contextlib.ExitStack,
    ) -> None:
        """Wait in the background until all is written, check it, write its manifest, and give it its final name."""
        try:
            with until_finished:
                self._orbax.wait_until_finished()
                if jax.process_index() == 0:
                    _check_is_whole(path, shapes)
                    manifest(path)
                    stored.finish_saving(self.folder, step)
                    stored.prune(self.folder, self._retention.keeps, best_by=self._retention.best_by)
                    frozen.remove_unused(stored.finished_or_aside(self.folder), self.folder / frozen.FOLDER)
        except Exception as error:  # of any kind: the step loop must get it
            self._failure = self._failed(step, error)
            self._failure.__cause__ = error

    def _failed(self, step: int, error: BaseException) -> SaveError:
        return SaveError(f"checkpoint {step} could not be written to {self.folder}", error)

    def check(self, *, wait: bool = False) -> None:
        """Raise SaveError if the save in the background has failed. With `wait`, wait for its end first."""
        if self._finishing and (wait or not self._finishing.is_alive()):
            self._finishing.join()
            self._finishing = None
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
            if error is None:  # otherwise the error that is being raised tells the user more
                raise

    # -- finding ------------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """Return the steps with a checkpoint, valid or not, oldest first."""
        return stored.steps(self.folder)

    def latest_valid(self) -> int | None:
        """Return the newest step with a valid checkpoint; log which checkpoints were skipped and why."""
        return stored.latest_valid(self.folder)

    def chosen(self, step: int | None, *, best: bool, best_by: str | None) -> int | None:
        """Return the step to use: a given one, the best one, or the newest valid one, which is None without any.

        Raises:
            ValueError: there is no valid checkpoint of that step, or none has a number to judge by.
        """
        if best:
            return stored.valid(self.folder, stored.require_best(self.folder, best_by))
        return self.latest_valid() if step is None else stored.valid(self.folder, step)

    def clear_after(self, step: int | None) -> None:
        """Leave no checkpoint later than `step`: remove unfinished ones, and set the others aside."""
        distributed.by_first(lambda: stored.clear_after(self.folder, step))

    # -- reading ------------------------------------------------------------------------------------------------

    def has_progress(self, step: int) -> bool:
        """Tell whether a checkpoint has a training state. One that was imported has parameters alone."""
        return (self.folder / str(step) / "progress").is_dir()

    def check_fits(self, step: int, target: TrainState) -> None:
        """Raise ValueError unless a step has all leaves of `target` and no others. Only their descriptions are read."""
        manifest = read_manifest(self.folder / str(step))
        params, frozen_tree, buffers = target.model
        items = {"params": params} | ({"buffers": buffers} if buffers else {})
        if self.has_progress(step):
            items["progress"] = _progress(target)
        self._check_has(step, "buffers", (self.folder / str(step) / "buffers").is_dir(), buffers)
        self._check_has(step, "frozen weights", bool(manifest.frozen), frozen_tree)
        with plain_path(self.folder) as folder:
            pairs = [(folder / str(step) / item, as_saved(tree, manifest.layout)) for item, tree in items.items()]
            if manifest.frozen:
                pairs.append((folder / frozen.FOLDER / manifest.frozen / "tree", frozen_tree))
            for item, tree in pairs:
                saved = _saved_tree(item)
                _check_fits(f"{item}:", _shapes(saved), _shapes(tree))
                _check_fits(f"{item}: the type of", _types(saved), _types(tree))

    def restore_model(self, step: int, target: ModelState) -> ModelState:
        """Return the model of a step, laid out as `target` is (ShapeDtypeStructs with shardings)."""
        return ModelState(
            self._restore(step, "params", target.params),
            self._restore_frozen(step, target.frozen),
            self._restore_buffers(step, target.buffers),
        )

    def restore_state(self, step: int, target: TrainState) -> TrainState:
        """Return the training state of a step, laid out as `target` is."""
        model = self.restore_model(step, target.model)
        return TrainState(model, **self._restore(step, "progress", _progress(target)))

    def _restore_buffers(self, step: int, target: ParamTree) -> ParamTree:
        self._check_has(step, "buffers", (self.folder / str(step) / "buffers").is_dir(), target)
        return self._restore(step, "buffers", target) if target else {}

    def _check_has(self, step: int, what: str, there: bool, target: ParamTree) -> None:
        if there != bool(target):
            raise ValueError(
                f"{self.folder / str(step)} has {'' if there else 'no '}{what}, and the model of the configuration has "
                f"{'some' if target else 'none'}; go back to the configuration it was made with"
            )

    def _restore_frozen(self, step: int, target: ParamTree) -> ParamTree:
        name = read_manifest(self.folder / str(step)).frozen
        self._check_has(step, "frozen weights", bool(name), target)
        if not name:
            return {}
        with plain_path(self.folder) as folder, _ocp().StandardCheckpointer() as checkpointer:
            path = folder / frozen.FOLDER / name / "tree"
            _check_fits(f"{self.folder / frozen.FOLDER / name}: its", _saved_shapes(path), _shapes(target))
            return checkpointer.restore(path, target)

    def restore_hook(self, step: int, name: str, target: ParamTree) -> ParamTree | None:
        """Return a hook's state in the layout of `target`, or None if the step has none of that name."""
        there = (self.folder / str(step) / _item(name)).is_dir()
        return self._restore(step, _item(name), target) if there else None

    def restore_data(self, step: int) -> dict:
        """Return the snapshot's `data`; {} for a checkpoint of parameters alone."""
        if not self.has_progress(step):
            return {}
        args = _ocp().args
        with plain_path(self.folder) as folder:
            return self._orbax.restore(folder / str(step), args=args.Composite(data=args.JsonRestore()))["data"]

    def _restore(self, step: int, item: str, target: ParamTree) -> ParamTree:
        with plain_path(self.folder) as folder:
            path, layout = folder / str(step), read_manifest(self.folder / str(step)).layout
            saved = as_saved(target, layout)
            _check_fits(f"{self.folder / str(step)}: its {item}", _saved_shapes(path / item), _shapes(saved))
            args = _ocp().args
            restored = self._orbax.restore(path, args=args.Composite(**{item: args.StandardRestore(saved)}))
            return as_now(restored[item], target, layout)


def _ocp() -> ModuleType:
    """Return Orbax. Importing it takes half a second, which commands that only read a configuration do not wait for."""
    import orbax.checkpoint

    return orbax.checkpoint


def _progress(state: TrainState) -> dict:
    """Return what a state holds besides its model."""
    return {name: value for name, value in state._asdict().items() if name != "model"}


def _check_is_whole(path: Path, shapes: dict[str, Shapes]) -> None:
    """Open all that a restore opens. Raise ValueError where something is missing, or has another shape."""
    _ocp().JsonCheckpointHandler().restore(path / "data")
    for item, written in shapes.items():
        if _saved_shapes(path / item) != written:
            raise ValueError(f"what was written of its {item} is not what was to be")


def _saved_shapes(item: Path) -> Shapes:
    return _shapes(_saved_tree(item))


def _saved_tree(item: Path) -> ParamTree:
    return _ocp().StandardCheckpointHandler().metadata(item).tree


def _shapes(tree: ParamTree) -> Shapes:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): tuple(leaf.shape) for path, leaf in leaves}


def _types(tree: ParamTree) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): str(jnp.dtype(leaf.dtype)) for path, leaf in leaves}


def _check_fits(what: str, saved: Mapping[str, object], wanted: Mapping[str, object]) -> None:
    for name in [*saved, *wanted]:
        if saved.get(name) != wanted.get(name):
            raise ValueError(
                f"{what} {name} is {saved.get(name, 'absent')} where the configuration has "
                f"{wanted.get(name, 'none')}; go back to the configuration it was made with, or pass --overwrite"
            )


def _item(hook: str) -> str:
    return f"hook_{hook}"
