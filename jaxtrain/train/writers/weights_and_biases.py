"""Runs of Weights & Biases."""

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from jaxtrain.train.folder import write_whole
from jaxtrain.train.writers.base import Numbers, Sink, Writer


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsAndBiases(Writer):
    """A run of Weights & Biases named after the run folder. Needs the extra `wandb`."""

    project: str
    paper: ClassVar[str] = "wandb.ai"

    def open(self, folder: Path, *, from_step: int) -> Sink:
        try:
            import wandb  # type: ignore[import-not-found]  # an extra, which may not be installed
        except ImportError as error:
            raise ValueError("WeightsAndBiases needs the package wandb: install jaxtrain[wandb]") from error
        known = folder / "wandb_id.txt"  # so that a resumed run goes on in the same place
        if not known.exists():
            write_whole(known, uuid.uuid4().hex)
        run = wandb.init(project=self.project, name=folder.name, dir=str(folder), id=known.read_text(), resume="allow")
        return _WeightsAndBiasesSink(run)


class _WeightsAndBiasesSink:
    def __init__(self, run):
        self._run = run

    def write(self, step: int, numbers: Numbers) -> None:
        self._run.log(numbers, step=step)

    def flush(self) -> None:
        """Do nothing: the service's own process flushes."""

    def close(self) -> None:
        self._run.finish()
