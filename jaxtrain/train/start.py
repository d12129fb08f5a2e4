"""Where a run starts: at its newest valid checkpoint, or at the beginning if nothing is lost by that."""

from jaxtrain.plain_path import plain_path
from jaxtrain.train import distributed, stored
from jaxtrain.train.folder import RunFolder
from jaxtrain.train.metrics import parse_metrics


def find_start(folder: RunFolder, *, first_save: int) -> int | None:
    """Return the step to go on from, None for a new run. Change nothing.

    A run that was killed before `first_save`, the first step with a checkpoint, or while saving it, begins anew.

    Raises:
        ValueError: there are checkpoints, but none of them is valid; or there are metrics, and no checkpoints;
            or the folder has a path that cannot be used.
    """
    with plain_path(folder.path):
        pass  # otherwise the first checkpoint would end the run
    if folder.metrics.exists() and not folder.metrics.is_file():
        raise ValueError(f"{folder.metrics} is not a file: move it away, or name another folder for the run")
    step = stored.latest_valid(folder.checkpoints)
    if step is None:
        distributed.by_first(lambda: _check_nothing_is_lost(folder, first_save))
    return step


def _check_nothing_is_lost(folder: RunFolder, first_save: int) -> None:
    checkpoints = folder.checkpoints
    if checkpoints.exists() and not checkpoints.is_dir():
        raise ValueError(f"{checkpoints} is not a folder: move it away, or name another folder for the run")
    if names := stored.names(checkpoints):
        raise ValueError(
            f"{checkpoints}: none of the checkpoints ({', '.join(names)}) is valid, so the run cannot go on; "
            f"bring back their files, or pass --overwrite to begin anew"
        )
    if _outlives_its_checkpoints(folder, first_save):
        raise ValueError(
            f"{folder.metrics} is that of a run whose checkpoints are not in {checkpoints}, so it cannot go on; "
            f"bring them back, name another folder, or pass --overwrite to begin anew"
        )


def _outlives_its_checkpoints(folder: RunFolder, first_save: int) -> bool:
    """Tell whether the metrics show more steps than a run leaves that is killed before its first checkpoint."""
    metrics = parse_metrics(folder.metrics)
    last = max((record["step"] for record in metrics.records), default=0)
    in_first_save = any(step <= first_save for step in stored.being_saved(folder.checkpoints))
    return bool(metrics.foreign) or (last >= first_save and not in_first_save)
