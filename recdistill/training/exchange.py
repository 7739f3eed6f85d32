"""What processes leave for each other in a shared folder: the parameters of one member, from time to time.

    EXCHANGE/<meeting>/<name>/<step>/   a checkpoint (`checkpoint.py`), which appears when it is complete

A meeting is one phase of one job, on one log and with one seed, so that seeds and controls do not mix; processes whose
encoded logs differ never meet. What was there when the run began is of an earlier run and is not heard. The last two
checkpoints of each process stay, since somebody may be reading the older one. Nobody waits for anybody, and what cannot
be used is passed over and counted.

Source: O1, Anil et al., 2018: replicas exchange checkpoints instead of gradients (details unverified).
Departure: a peer that is missing, late or broken is passed over: its last readable checkpoint, another peer or the
    copy's own last parameters stand in.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recdistill.distill.layout import table_key
from recdistill.distill.member import Phase
from recdistill.errors import RunError
from recdistill.spec.members import Remote
from recdistill.training import checkpoint
from recdistill.training.cast import Cast
from recdistill.training.processes import add_up, agreed, barrier, rank, world

Parameters = Mapping[str, Tensor]


class Exchange:
    """One process's visits to a shared folder.

    Args:
        cast: the members.
        copies: those who become what others have left there; they have one origin.
        trained_on: what tells the training from others, apart from its terms: log and seed.
        since: when the run began, in seconds since 1970.
    """

    def __init__(self, cast: Cast, copies: Sequence[str], trained_on: Sequence[object], since: float) -> None:
        self.cast, self.copies, self.trained_on, self.since = cast, copies, trained_on, since
        origin = cast.members[copies[0]].origin
        assert isinstance(origin, Remote)
        self.origin = origin
        self.taken: set[str] = set()
        self.before: str | None = None  # the step of the last visit
        self.heard: dict[str, int] = {}  # of each of the others the step that was found there
        self.counts = {"visits": 0, "alone": 0, "stale": 0, "unusable": 0}

    def begin(self, phase: Phase) -> None:
        """A phase begins: what an earlier attempt at it has left goes."""
        if rank() == 0:
            shutil.rmtree(self._meeting(phase) / self.origin.name, ignore_errors=True)
        barrier()
        self.before, self.heard = None, {}

    def visit(self, phase: Phase, step: int) -> dict[str, float]:
        """Publish our parameters and load the peers' newest into the copies.

        With fewer peers than copies, peers are reused; with more, the surplus is ignored.

        Args:
            phase: the phase that is trained.
            step: steps taken in it.

        Returns:
            Whether no peer was found; for each copy the step at which its parameters were published, and how many of
            our own steps ago that was.
        """
        folder = self._meeting(phase)
        self._leave(folder / self.origin.name, f"{step:09d}")
        others = {name: at for name, steps in self._others(folder) if (at := self._newest(folder / name, steps))}
        heard = {name: left for name, (left, _) in others.items()}
        self.counts["visits"] += 1
        self.counts["alone"] += not others
        self.counts["stale"] += any(self.heard.get(name) == left for name, left in heard.items())
        self.heard = heard
        values = {f"{self.origin.of}.alone": float(not others)}
        for copy, (left, parameters) in zip(self.copies, cycle(others.values()), strict=False):
            with torch.no_grad():
                for mine, theirs in self._beside(copy, parameters):
                    mine.copy_(theirs)
            self.taken.add(copy)
            values |= {f"{copy}.step": float(left), f"{copy}.lag": float(step - left)}
        return values

    @property
    def progress(self) -> dict[str, Any]:
        """Everything that changes."""
        return {"since": self.since, "before": self.before, "heard": self.heard, "counts": self.counts}

    def restore(self, progress: Mapping[str, Any]) -> None:
        """Put back what `progress` has said."""
        self.since, self.before = progress["since"], progress["before"]
        self.heard, self.counts = progress["heard"], progress["counts"]

    def _meeting(self, phase: Phase) -> Path:
        """The folder of a phase in the shared one."""
        text = json.dumps([*self.trained_on, [term.words for term in phase.terms]])
        return Path(self.origin.exchange) / hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def _leave(self, folder: Path, step: str) -> None:
        """Publish our parameters; delete all but this and the previous checkpoint."""
        checkpoint.save(self.cast, folder / step, [self.origin.of])
        if rank() == 0:
            for entry in folder.iterdir():
                if entry.name not in (step, self.before):
                    shutil.rmtree(entry, ignore_errors=True)
        self.before = step

    def _others(self, folder: Path) -> list[tuple[str, list[str]]]:
        """Everybody else, by name, with the steps at which they have left something, the newest first."""
        found = []
        for entry in sorted(folder.iterdir()) if rank() == 0 else ():
            if entry.is_dir() and entry.name != self.origin.name:
                steps = [each.name for each in entry.glob("*") if each.name.isdigit() and self._is_of_this_run(each)]
                found.append((entry.name, sorted(steps, reverse=True)))
        return agreed(found)

    def _is_of_this_run(self, folder: Path) -> bool:
        """Whether a checkpoint is there that was left after the run had begun."""
        try:
            return folder.stat().st_mtime >= self.since
        except FileNotFoundError:  # withdrawn
            return False

    def _newest(self, folder: Path, steps: Sequence[str]) -> tuple[int, Parameters] | None:
        """The newest parameters of one of the others that can be used, and their step."""
        for step in steps:
            parameters = self._read(folder / step)
            usable = add_up(torch.tensor(int(parameters is not None)))
            if parameters is not None and int(usable) == world():
                return int(step), parameters
            self.counts["unusable"] += 1
        return None

    def _read(self, folder: Path) -> Parameters | None:
        """The parameters in a checkpoint, if they fit the copies and are numbers."""
        try:
            parameters = checkpoint.read(folder)
            pairs = [*self._beside(self.copies[0], parameters)]
        except (RunError, OSError, LookupError, ValueError, TypeError, RuntimeError):  # withdrawn, cut short, nonsense
            return None
        fits = all(mine.shape == theirs.shape and bool(torch.isfinite(theirs).all()) for mine, theirs in pairs)
        return parameters if fits else None

    def _beside(self, copy: str, parameters: Parameters) -> Iterator[tuple[Tensor, Tensor]]:
        """The local parameters of a copy beside what a checkpoint holds of its original.

        Raises:
            KeyError: the checkpoint lacks one.
        """
        of, layout = self.origin.of, self.cast.layout.members
        for key, mine in self.cast.heads[copy].state_dict().items():
            yield mine, parameters[f"{of}.{key}"]
        sources = {feature.name: table_key(bank, feature.table) for feature, bank in layout[of].lookups}
        tables = {(bank, feature.table): sources[feature.name] for feature, bank in layout[copy].lookups}
        for bank in layout[copy].banks:
            for table, shard, first in self.cast.tables.shards(bank):
                if (bank, table) in tables:
                    yield shard, parameters[tables[bank, table]][first : first + len(shard)]
