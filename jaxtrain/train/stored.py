"""The folder `checkpoints/` of a run: which checkpoints it has, which are valid, and what becomes of the others.

    12/             finished: it takes this name when all of it is on the disk, its manifest last
    15.saving/      being written, or left by a process that was killed: never finished, so it is removed
    10.removing/    no longer to be kept, on its way out
    frozen/         frozen weights, which checkpoints refer to (frozen.py)
    invalid-12-1/  found damaged, unreadable or not whole when a run went on from an earlier one: set aside

A finished checkpoint is removed where Retention says so and a newer one was seen to be whole, and never otherwise;
`--overwrite` alone removes a run.
"""

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import jax

from jaxtrain.train import distributed, frozen
from jaxtrain.train.folder import flush_folder, free_name
from jaxtrain.train.manifest import check_layout, fault, is_finished, read_manifest

log = logging.getLogger(__name__)
_FINISHED = re.compile(r"0|[1-9][0-9]{0,17}")
_UNFINISHED = re.compile(r"[0-9]+\.((saving\.)?orbax-checkpoint-tmp|saving|removing)")
REMOVING = ".removing"


def steps(folder: Path) -> list[int]:
    """Return the steps with a checkpoint, valid or not, oldest first."""
    return sorted(int(path.name) for path in _folders(folder) if _FINISHED.fullmatch(path.name))


def being_saved(folder: Path) -> list[int]:
    """Return the steps of which a checkpoint was begun and not finished."""
    return [int(path.name.split(".")[0]) for path in _left(folder) if path.suffix != REMOVING]


def names(folder: Path) -> list[str]:
    """Return the names of all checkpoints, also of those that were set aside, or copied or renamed by hand."""
    return [path.name for path in finished_or_aside(folder)]


def finished_or_aside(folder: Path) -> list[Path]:
    """Return the checkpoints that are finished, and those that were set aside."""
    left = _left(folder)
    return [path for path in _folders(folder) if path not in left]


def _left(folder: Path) -> list[Path]:
    """Return what processes that were killed left half-written or half-removed."""
    return [path for path in _folders(folder) if _UNFINISHED.fullmatch(path.name)]


def _folders(folder: Path) -> list[Path]:
    there = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in there if path.is_dir() and path.name != frozen.FOLDER)


def latest_valid(folder: Path) -> int | None:
    """Return the newest step with a valid checkpoint; log which checkpoints were skipped and why."""
    left = steps(folder)
    while (step := distributed.of_first(max(left, default=-1))) >= 0:
        path = folder / str(step)
        check_layout(path)
        found = _fault(path)
        if found:
            log.warning("checkpoint %s is refused: %s", path, found)
        if not distributed.anywhere(found is not None):
            return step
        left = [earlier for earlier in left if earlier < step]
    return None


def _fault(path: Path) -> str | None:
    """Say what is wrong with the files of a checkpoint, and with those it refers to, if anything is."""
    share = {"part": jax.process_index(), "parts": jax.process_count()}
    found = fault(path, **share)
    if found or not (name := read_manifest(path).frozen):
        return found
    of_frozen = fault(path.parent / frozen.FOLDER / name, **share)
    return of_frozen and f"of its frozen weights, {frozen.FOLDER}/{name}, {of_frozen}"


def clear_after(folder: Path, step: int | None) -> None:
    """Remove what was never finished; set aside what is later than a step, refused and about to be written anew."""
    for path in _left(folder):
        if path.suffix != REMOVING:
            log.warning("checkpoint %s is refused: it was never finished", path)
        shutil.rmtree(path, ignore_errors=True)
    frozen.clear_unfinished(folder / frozen.FOLDER)
    for later in steps(folder):
        if step is None or later > step:
            set_aside(folder / str(later))


def set_aside(path: Path) -> None:
    """Keep a checkpoint under a name that no run goes on from."""
    aside = free_name(path.parent, f"invalid-{path.name}-{{}}")
    path.rename(aside)
    log.warning("checkpoint %s is kept as %s", path, aside.name)


def begin_saving(folder: Path, step: int) -> None:
    """Make the folder that a checkpoint is written into, unless it is there and empty."""
    path = folder / saving_name(step)
    if path.is_dir() and not any(path.iterdir()):
        return
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)


def finish_saving(folder: Path, step: int) -> None:
    """Give a checkpoint that is whole the name by which it is found."""
    finished = folder / str(step)
    if finished.exists():
        set_aside(finished)
    (folder / saving_name(step)).rename(finished)
    flush_folder(folder)


def saving_name(step: int) -> str:
    return f"{step}.saving"


def prune(folder: Path, keeps: Callable[..., bool]) -> None:
    """Remove what need not be kept; where that fails nothing is lost but room, and the run goes on."""
    finished = [step for step in steps(folder) if is_finished(folder / str(step))]
    for newer, step in enumerate(reversed(finished)):
        if not keeps(step, newer=newer):
            try:
                _remove(folder / str(step))
            except OSError as error:
                log.warning("checkpoint %s is no longer needed but cannot be removed: %s", folder / str(step), error)


def _remove(path: Path) -> None:
    """Remove a checkpoint; if killed meanwhile, what is left does not look like one."""
    removing = path.rename(path.with_name(f"{path.name}{REMOVING}"))
    shutil.rmtree(removing)
