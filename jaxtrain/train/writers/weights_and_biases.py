"""Runs of Weights & Biases."""

import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from jaxtrain.train.folder import write_whole
from jaxtrain.train.writers.base import Numbers, Sink, Writer

OFFLINE = ("offline", "dryrun", "disabled")


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightsAndBiases(Writer):
    """A run of Weights & Biases named after the run folder.

    Needs the extra `wandb`, and a login or WANDB_MODE=offline.
    """

    project: str
    paper: ClassVar[str] = "wandb.ai"

    def check(self) -> None:
        wandb = _wandb()
        if os.environ.get("WANDB_MODE") in OFFLINE:
            return
        remedy = "run `wandb login`, set WANDB_API_KEY, or WANDB_MODE=offline"
        try:
            known = wandb.login(prompt=False)
        except Exception as error:  # the server is out of reach, or does not know the key
            raise ValueError(f"WeightsAndBiases cannot log in: {error}; {remedy}") from error
        if not known:
            raise ValueError(f"WeightsAndBiases has no login: {remedy}")

    def open(self, folder: Path, *, from_step: int) -> Sink:
        wandb = _wandb()
        known = folder / "wandb_id.txt"  # so that a resumed run goes on in the same place
        if not known.exists():
            write_whole(known, uuid.uuid4().hex)
        run = wandb.init(project=self.project, name=folder.name, dir=str(folder), id=known.read_text(), resume="allow")
        return _WeightsAndBiasesSink(run)


def _wandb() -> Any:
    try:
        import wandb  # type: ignore[import-not-found]  # an extra, which may not be installed
    except ImportError as error:
        raise ValueError("WeightsAndBiases needs the package wandb: install jaxtrain[wandb]") from error
    return wandb


class _WeightsAndBiasesSink:
    def __init__(self, run):
        self._run = run

    def write(self, step: int, numbers: Numbers) -> None:
        self._run.log(numbers, step=step)

    def flush(self) -> None:
        """Do nothing: the service's own process flushes."""

    def close(self) -> None:
        self._run.finish()
