"""A run writes down what it is, before its first step. A folder's run goes on only as what it was, or where told so."""

import logging
from collections.abc import Callable

import jax

from jaxtrain.record.files import RunFiles, differences, kept_names, read_origins
from jaxtrain.record.text import Difference
from jaxtrain.record.written import written_differences
from jaxtrain.train.folder import RunFolder, saving
from jaxtrain.train.loop import Trainer
from jaxtrain.train.stopping import Stop

log = logging.getLogger(__name__)


def files_of(config: object, folder: RunFolder) -> RunFiles | None:
    """Return the files of a configuration, None where no file can name it, such as one with a class in a function.

    The run of such a configuration has no record, and is compared with none. A warning says so.
    """
    try:
        return RunFiles.of(config)
    except ValueError as error:
        log.warning("%s is not that of this run, and cannot be: %s", folder.config, error)
        return None


def check_same(
    folder: RunFolder, files: RunFiles, *, allow_change: bool, before: RunFiles | None = None
) -> list[Difference]:
    """Return the keys in which a configuration differs from that of the folder's run. Nothing is written.

    `before` is what the folder's config.gin says, where the caller can read it. Otherwise the texts are compared.

    Raises:
        ValueError: a key differs, or the run has no config.gin, without `allow_change`; or other files are at the same
            paths. These are never allowed, because the user has not stated that change.
    """
    read_origins(folder)  # raises if the file of origins is damaged
    if not (folder.is_used or folder.metrics.exists()):
        return []
    if not folder.config.exists():
        if not allow_change:
            raise ValueError(
                f"{folder.path}: holds a run but no {folder.config.name}; pass --allow-config-change, in Python "
                "allow_config_change=True, to go on, or --overwrite"
            )
        return [Difference(folder.config.name, None, "written")]
    text = before.text if before else folder.config.read_text()
    files.check_unchanged(kept_names(text), folder)
    changes = differences(before, files) if before else written_differences(text, files.text)
    if changes and not allow_change:
        raise ValueError(
            f"{folder.path} holds a run with another configuration:\n{listed(changes)}\n"
            f"pass --allow-config-change, in Python allow_config_change=True, to go on with the new one, --overwrite "
            f"to begin anew, or --run for another folder"
        )
    return changes


def checked_start(trainer: Trainer, changes: list[Difference]) -> int | None:
    """Return the step that a run goes on from with another configuration, None for a new run. Nothing is written.

    Raises:
        ValueError: the checkpoint does not fit the configuration; or what `Trainer.find_start` raises.
    """
    start = trainer.find_start()
    if start is not None and changes:
        try:
            trainer.check_fits(start)
        except ValueError as error:
            raise ValueError(
                f"{trainer.folder.path} cannot go on, its checkpoints are of another model or optimizer:\n"
                f"{listed(changes)}\n"
                f"go back to the one they were made with, pass --overwrite to begin anew, or --run for another folder"
            ) from error
    return start


def write_record(
    folder: RunFolder, files: RunFiles, *, clear: bool = False, then: Callable[[], None] = lambda: None
) -> None:
    """Write config.gin and its files from the first process, which calls `then`. `clear` removes the run before.

    Raises:
        SaveError: they cannot be written. It is raised on every process.
    """
    outcome = Stop()
    if jax.process_index() == 0:
        with outcome.reporting(), saving(f"{folder.path} cannot be written"):
            if clear:
                folder.clear()
            files.write(folder)
            then()
    outcome.settle()


def listed(changes: list[Difference]) -> str:
    return "\n".join(f"  {change}" for change in changes)
