"""TensorBoard: one folder of event files per job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kdsteps.loggers.base import Epoch, Logger, Training

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event


class Writer(Logger):
    """Event files for `tensorboard --logdir logs/live/tensorboard`.

    The first event purges what earlier files of the job have from that epoch on, so a curve that
    continues, or that is trained anew, has each epoch once.

    Args:
        folder: Folder with one folder per job.
    """

    def __init__(self, training: Training, *, folder: str = "logs/live/tensorboard") -> None:
        super().__init__(training)
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._events = EventFileWriter(str(Path(folder, training.job)))
        self._is_first = True

    def log(self, epoch: Epoch) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        if self._is_first:
            start = SessionLog(status=SessionLog.START)
            self._add(Event(session_log=start), epoch)
            self._is_first = False
        scalars = [Summary.Value(tag=k, simple_value=v) for k, v in epoch.values.items()]
        self._add(Event(summary=Summary(value=scalars)), epoch)
        self._events.flush()

    def close(self) -> None:
        self._events.close()

    def _add(self, event: Event, epoch: Epoch) -> None:
        event.wall_time, event.step = epoch.time, epoch.number
        self._events.add_event(event)
