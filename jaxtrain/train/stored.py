"""The folder `checkpoints/` of a run: which checkpoints it has, which are valid, and what becomes of the others.

    12/             finished: it takes this name when all of it is on the disk, its manifest last
    15.saving/      being written, or left by a process that was killed: never finished, so it is removed
    10.removing/    no longer to be kept, being removed
    frozen/         frozen weights, which checkpoints refer to (frozen.py)
    damaged-12-1/  found damaged, unreadable or not whole when a run went on from an earlier one: set aside

A finished checkpoint is removed only if Retention does not keep it and a newer one was found to be complete. Only
`--overwrite` removes a run.
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
    """Return the steps whose checkpoint was begun but not finished."""
    return [int(path.name.split(".")[0]) for path in _unfinished(folder) if path.suffix != REMOVING]


def names(folder: Path) -> list[str]:
    """Return the names of all checkpoints, also of those that were set aside, or copied or renamed by hand."""
    return [path.name for path in finished_or_aside(folder)]


def finished_or_aside(folder: Path) -> list[Path]:
    """Return the checkpoints that are finished, and those that were set aside."""
    unfinished = _unfinished(folder)
    return [path for path in _folders(folder) if path not in unfinished]


def _unfinished(folder: Path) -> list[Path]:
    """Return the checkpoints that killed processes left half-written or half-removed."""
    return [path for path in _folders(folder) if _UNFINISHED.fullmatch(path.name)]


def _folders(folder: Path) -> list[Path]:
    there = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in there if path.is_dir() and path.name != frozen.FOLDER)


def latest_valid(folder: Path) -> int | None:
    """Return the newest step with a valid checkpoint; log which checkpoints were skipped and why."""
    candidates = steps(folder)
    while (step := distributed.of_first(max(candidates, default=-1))) >= 0:
        path = folder / str(step)
        check_layout(path)
        problem = _fault(path)
        if problem:
            log.warning("checkpoint %s is refused: %s", path, problem)
        if not distributed.anywhere(problem is not None):
            return step
        candidates = [earlier for earlier in candidates if earlier < step]
    return None


def valid(folder: Path, step: int) -> int:
    """Return a step whose checkpoint somebody asked for.

    Raises:
        ValueError: there is none of that step, or it is damaged.
    """
    there = steps(folder)
    if distributed.anywhere(step not in there):
        have = f"there are {', '.join(map(str, there))}" if there else "there are none"
        raise ValueError(f"{folder} has no checkpoint of step {step}: {have}")
    check_layout(folder / str(step))
    problem = _fault(folder / str(step))
    if distributed.anywhere(problem is not None):
        raise ValueError(f"checkpoint {folder / str(step)} is refused: {problem or 'another process found it damaged'}")
    return step


def require_best(folder: Path, best_by: str | None) -> int:
    """Return the step of `best`. Raises ValueError where there is none."""
    found = None if best_by is None else best(folder, best_by)
    step = distributed.of_first(-1 if found is None else found)
    if step >= 0:
        return step
    if best_by is None:
        raise ValueError(f"{folder}: best_by of the hook Checkpoint is None, so no checkpoint is the best; name a step")
    raise ValueError(
        f"{folder}: no checkpoint was saved at a step with a {best_by}, so none is the best; name a step, or save at "
        "steps at which a hook measures it"
    )


def best(folder: Path, best_by: str) -> int | None:
    """Return the step of the finished checkpoint with the least of a number, the earliest of several; None for none.

    It is one of those that read the stream of the newest with that number: phases with other data, or another length,
    measure other text. Checkpoints of earlier versions do not say what they read, and are judged with all.
    """
    manifests = {step: read_manifest(path) for step in steps(folder) if is_finished(path := folder / str(step))}
    judged = {step: manifest for step, manifest in manifests.items() if best_by in manifest.measured}
    if not judged:
        return None
    alike = (None, judged[max(judged)].stream)
    return min((found.measured[best_by], step) for step, found in judged.items() if found.stream in alike)[1]


def _fault(path: Path) -> str | None:
    """Return what is wrong with the files of a checkpoint or of its frozen weights, None if nothing."""
    share = {"part": jax.process_index(), "parts": jax.process_count()}
    problem = fault(path, **share)
    if problem or not (name := read_manifest(path).frozen):
        return problem
    of_frozen = fault(path.parent / frozen.FOLDER / name, **share)
    return of_frozen and f"of its frozen weights, {frozen.FOLDER}/{name}, {of_frozen}"


def clear_after(folder: Path, step: int | None) -> None:
    """Remove unfinished checkpoints. Set aside those later than `step`: they were skipped, and will be written anew."""
    for path in _unfinished(folder):
        if path.suffix != REMOVING:
            log.warning("checkpoint %s is refused: it was never finished", path)
        shutil.rmtree(path, ignore_errors=True)
    frozen.clear_unfinished(folder / frozen.FOLDER)
    for later in steps(folder):
        if step is None or later > step:
            set_aside(folder / str(later))


def set_aside(path: Path) -> None:
    """Rename a checkpoint so that no run goes on from it."""
    aside = free_name(path.parent, f"damaged-{path.name}-{{}}")
    path.rename(aside)
    log.warning("checkpoint %s is kept as %s", path, aside.name)


def begin_saving(folder: Path, step: int) -> None:
    """Make the empty folder that a checkpoint is written into, unless it is there."""
    path = folder / saving_name(step)
    if path.is_dir() and not any(path.iterdir()):
        return
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)


def finish_saving(folder: Path, step: int) -> None:
    """Give a complete checkpoint its final name."""
    finished = folder / str(step)
    if finished.exists():
        set_aside(finished)
    (folder / saving_name(step)).rename(finished)
    flush_folder(folder)


def saving_name(step: int) -> str:
    return f"{step}.saving"


def prune(folder: Path, keeps: Callable[..., bool], *, best_by: str | None = None) -> None:
    """Remove the checkpoints that need not be kept. If that fails, only disk space is lost, and the run goes on."""
    finished = [step for step in steps(folder) if is_finished(folder / str(step))]
    best_step = None if best_by is None else best(folder, best_by)
    for newer, step in enumerate(reversed(finished)):
        if not keeps(step, newer=newer, best=best_step):
            try:
                _remove(folder / str(step))
            except OSError as error:
                log.warning("checkpoint %s is no longer needed but cannot be removed: %s", folder / str(step), error)


def _remove(path: Path) -> None:
    """Remove a checkpoint. It is renamed first: if killed meanwhile, what is left does not look like one."""
    removing = path.rename(path.with_name(f"{path.name}{REMOVING}"))
    shutil.rmtree(removing)
