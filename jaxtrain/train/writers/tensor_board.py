"""Event files for TensorBoard."""

import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from jaxtrain.train.writers.base import Numbers, Sink, Writer


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorBoard(Writer):
    """Event files in the run folder's `tensorboard`."""

    paper: ClassVar[str] = "www.tensorflow.org/tensorboard"

    def open(self, folder: Path, *, from_step: int) -> Sink:
        return _TensorBoardSink(folder / "tensorboard", from_step)


class _TensorBoardSink:
    """Writes events itself: the threads of tensorboardX's SummaryWriter block for ever when the disk is full."""

    def __init__(self, folder: Path, from_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        folder.mkdir(parents=True, exist_ok=True)
        self._event, self._summary = Event, Summary
        self._writer = EventsWriter(str(folder / "events"), filename_suffix=f".{uuid.uuid4().hex[:8]}")
        # Tells TensorBoard to forget what an earlier process wrote for these steps.
        self._writer.write_event(Event(step=from_step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, numbers: Numbers) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._writer.write_event(self._event(step=step, wall_time=time.time(), summary=self._summary(value=values)))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
