"""A run writes down what it is, when it begins from Python."""

import logging

import jax

from jaxtrain.record.files import RunFiles
from jaxtrain.train.folder import RunFolder, saving
from jaxtrain.train.stopping import Stop

log = logging.getLogger(__name__)


def recorded[T](config: T, folder: RunFolder) -> T:
    """Write the config.gin of a run and its files, from the first process. Return the configuration with the copies.

    A configuration that no file can name, such as one with a class that is local to a function, is returned as it is,
    with a warning.

    Raises:
        SaveError: they cannot be written. It is raised on every process.
    """
    try:
        files = RunFiles.of(config)
    except ValueError as error:
        log.warning("%s is not that of this run, and cannot be: %s", folder.config, error)
        return config
    outcome = Stop()
    if jax.process_index() == 0:
        with outcome.reporting(), saving(f"{folder.path} cannot be written"):
            files.write(folder)
    outcome.settle()
    return files.from_copies(folder)
