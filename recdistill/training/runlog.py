"""The log of a training: one JSON line for each reported step and each evaluation. It holds no timings."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self


@dataclass(frozen=True)
class Event:
    """Something that happened while training, for logs and progress bars.

    Attributes:
        kind: ``step``, ``evaluation``, ``choice`` of what no gradient teaches, or ``exchange`` with other processes.
        phase: number of the phase.
        step: steps taken in the phase.
        planned: steps that the phase takes at most.
        values: losses of the terms, or metrics of members, by name.
    """

    kind: str
    phase: int
    step: int
    planned: int
    values: dict[str, float]


Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """A listener that does nothing."""
    del event


class RunLog:
    """Appends events to a file of JSON lines.

    Args:
        path: the file.
        keep: how many bytes of it are kept, if an interrupted training goes on.
    """

    def __init__(self, path: Path, keep: int = 0) -> None:
        self.file = path.open("r+" if keep else "w", encoding="utf-8")
        if keep:
            self.file.truncate(keep)
            self.file.seek(keep)
        self.stage = "train"

    @property
    def length(self) -> int:
        """Bytes written so far."""
        return self.file.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()

    def write(self, event: Event) -> None:
        """Append one event."""
        line = {
            "stage": self.stage,
            "kind": event.kind,
            "phase": event.phase,
            "step": event.step,
            "values": event.values,
        }
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
