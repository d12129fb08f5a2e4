"""Runs of MLflow."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from jaxtrain.train.folder import write_whole
from jaxtrain.train.writers.base import Numbers, Sink, Writer

SECONDS = 5.0  # between two messages to the server
MOST = 1000  # numbers of a message, by the server's limit
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class MLflow(Writer):
    """A run of MLflow named after the run folder. Needs the extra `mlflow`.

    The server is that of MLFLOW_TRACKING_URI. Numbers that it does not take are kept and sent again later. Of steps
    that are made anew after a kill it shows both.
    """

    experiment: str
    paper: ClassVar[str] = "mlflow.org"

    def check(self) -> None:
        _, client = _connected()
        try:
            client.get_experiment_by_name(self.experiment)
        except Exception as error:
            raise ValueError(
                f"MLflow(experiment={self.experiment!r}): its server cannot be reached: {error}"
            ) from error

    def open(self, folder: Path, *, from_step: int) -> Sink:
        entities, client = _connected()
        known = folder / "mlflow_id.txt"  # so that a resumed run goes on in the same place
        if known.exists():
            _show_as_running(client, known.read_text())
        else:
            found = client.get_experiment_by_name(self.experiment)
            experiment = found.experiment_id if found else client.create_experiment(self.experiment)
            write_whole(known, client.create_run(experiment, run_name=folder.name).info.run_id)
        return _MLflowSink(entities.Metric, client, known.read_text())


def _show_as_running(client: Any, run: str) -> None:
    try:
        client.update_run(run, status="RUNNING")
    except Exception as error:
        raise ValueError(f"MLflow has no run {run}, which mlflow_id.txt names; remove that file: {error}") from error


def _connected() -> tuple[Any, Any]:
    """Return the module of MLflow's records, and a client of the server."""
    try:
        import mlflow  # type: ignore[import-not-found]  # an extra, which may not be installed
    except ImportError as error:
        raise ValueError("MLflow needs the package mlflow: install jaxtrain[mlflow]") from error
    try:
        return mlflow.entities, mlflow.MlflowClient()
    except Exception as error:
        raise ValueError(f"MLflow cannot be used: {error}") from error


class _MLflowSink:
    def __init__(self, metric: Any, client: Any, run: str):
        self._metric, self._client, self._run = metric, client, run
        self._kept: list[Any] = []
        self._sent = time.monotonic()

    def write(self, step: int, numbers: Numbers) -> None:
        now = int(time.time() * 1000)
        self._kept += [self._metric(name, value, now, step) for name, value in numbers.items()]
        if time.monotonic() - self._sent >= SECONDS:
            self.flush()

    def flush(self) -> None:
        self._sent = time.monotonic()
        while self._kept:
            part = self._kept[:MOST]
            try:
                self._client.log_batch(self._run, metrics=part)
            except Exception as error:  # of the network or the server: no reason to end a run
                log.warning("MLflow took no numbers, they are sent again later: %s", error)
                return
            del self._kept[: len(part)]

    def close(self) -> None:
        self.flush()
        if self._kept:
            log.warning("MLflow lacks %d numbers, which metrics.jsonl has", len(self._kept))
            return
        try:
            self._client.set_terminated(self._run)
        except Exception as error:
            log.warning("MLflow still shows the run as one that goes on: %s", error)
