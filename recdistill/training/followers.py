"""Members that follow others: moving averages, snapshots, best and previous copies, and those in other processes.

They have parameters of their own, which nothing trains. Each kind copies from its original at its own moments: after a
step, at an evaluation, at the start of a phase. Before the first time it knows nothing, and terms that need it are left
out.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from recdistill.distill.checks import trained_names
from recdistill.distill.member import Member, Phase
from recdistill.distill.schedule import Moment
from recdistill.spec.members import Best, Ema, Previous, Remote, Snapshot
from recdistill.training.cast import Cast
from recdistill.training.exchange import Exchange


class Followers:
    """The followers of a cast.

    Args:
        cast: all members.
        trained_on: what tells the training from others, apart from its terms, for those who meet other processes.
        since: when the run began.
    """

    def __init__(self, cast: Cast, trained_on: Sequence[object] = (), since: float = 0.0) -> None:
        self.cast = cast
        self.members: dict[str, Member] = {n: m for n, m in cast.members.items() if m.follows is not None}
        self.ready: set[str] = set()
        self.best: dict[str, list[float]] = {n: [] for n, m in self.members.items() if isinstance(m.origin, Best)}
        self.kept: dict[str, list[list[Tensor]]] = {name: [] for name in self.best}
        remote = {n: m.origin for n, m in self.members.items() if isinstance(m.origin, Remote)}
        groups = {origin: [n for n, o in remote.items() if o == origin] for origin in remote.values()}
        self.exchanges = [Exchange(cast, copies, trained_on, since) for copies in groups.values()]

    @property
    def silent(self) -> set[str]:
        """Those that have copied nothing yet."""
        return {*self.members} - self.ready

    def of(self, trained: Iterable[str]) -> list[str]:
        """Followers that change whenever one of these members is trained."""
        names = {*trained}
        moving = {n: m for n, m in self.members.items() if not isinstance(m.origin, Previous | Snapshot | Remote)}
        names |= {n for n, m in moving.items() if m.follows in names}
        return [n for n, m in moving.items() if m.follows in names]

    def phase_begins(self, phase: Phase, *, first: bool) -> None:
        """Previous copies become what their originals are now, and so do snapshots of members that the phase trains.

        In the first phase that is nothing yet.
        """
        for exchange in self.exchanges:
            exchange.begin(phase)
        moving = trained_names(phase.trained, self.cast.members)
        for name, member in self.members.items() if not first else ():
            if isinstance(member.origin, Previous) or (
                isinstance(member.origin, Snapshot) and member.follows in moving
            ):
                self._copy(name)

    def step_taken(self, step: int, planned: int, phase: Phase) -> dict[str, float]:
        """Averages and snapshots follow the members that the phase trains, others are met.

        A snapshot is taken where a stretch of its length begins. At the end of a phase none does, so that whoever was
        taught last by the snapshot is reported beside it, and not beside itself.

        Args:
            step: steps taken in the phase, this one included.
            planned: steps that the phase takes.
            phase: the phase.

        Returns:
            What was found of other processes.
        """
        moving = trained_names(phase.trained, self.cast.members)
        for name, member in self.members.items():
            if member.follows not in moving:
                continue
            origin = member.origin
            if isinstance(origin, Ema) and step % origin.every == 0:
                self._average(name, origin.decay**origin.every)
            elif isinstance(origin, Snapshot) and step < planned and begins(origin.every, step, planned):
                self._copy(name)
        found: dict[str, float] = {}
        for exchange in self.exchanges:
            if begins(exchange.origin.every, step, planned) and exchange.origin.of in moving:
                found |= exchange.visit(phase, step)
                self.ready |= exchange.taken
                self.cast.moved(exchange.copies)
        return found

    def evaluated(self, values: dict[str, float], monitor: str, trained: Iterable[str]) -> None:
        """Best copies are renewed at a new best evaluation; others may still be among the best that they average.

        Args:
            values: what the evaluation has found, ``member.metric``.
            monitor: the metric that decides.
            trained: the members that move.
        """
        names = {*trained, *self.of(trained)}
        for name, found in self.best.items():
            member = self.members[name]
            assert isinstance(member.origin, Best)
            if member.follows not in names:
                continue
            value = values[f"{self._judged(member)}.{monitor}"] * (1 if monitor == "logloss" else -1)
            is_best = value <= min(found, default=value)
            if len(found) < member.origin.average or value <= max(found):
                self._keep(name, value, member.origin.average)
            if is_best:
                self._renew(name)

    def _judged(self, member: Member) -> str | None:
        """Whose evaluations decide about a best copy."""
        assert isinstance(member.origin, Best) and member.follows is not None
        original = self.cast.members[member.follows].follows
        return original if member.origin.by == "original" and original is not None else member.follows

    def _keep(self, name: str, value: float, count: int) -> None:
        """Keep the original's parameters among the best."""
        found, kept = self.best[name], self.kept[name]
        found.append(value)
        kept.append([theirs.clone() for _, theirs in self._pairs(name)])
        if len(found) > count:
            worst = found.index(max(found))
            del found[worst], kept[worst]

    def _renew(self, name: str) -> None:
        """Take the mean of the parameters that were best."""
        kept = self.kept[name]
        self._each(name, lambda i, _: torch.stack([each[i] for each in kept]).mean(0))

    def _copy(self, name: str) -> None:
        self._each(name, lambda _, theirs: theirs)

    def _average(self, name: str, decay: float) -> None:
        if name not in self.ready:  # nothing to average with
            self._copy(name)
            return
        with torch.no_grad():
            for mine, theirs in self._pairs(name):
                if mine.is_floating_point():
                    mine.lerp_(theirs, 1 - decay)
                else:
                    mine.copy_(theirs)
        self.cast.moved([name])

    def _each(self, name: str, value: Callable[[int, Tensor], Tensor]) -> None:
        with torch.no_grad():
            for i, (mine, theirs) in enumerate(self._pairs(name)):
                mine.copy_(value(i, theirs))
        self.ready.add(name)
        self.cast.moved([name])

    def _pairs(self, name: str) -> list[tuple[Tensor, Tensor]]:
        original = self.members[name].follows
        assert original is not None
        return list(self.cast.pairs(name, original))

    @property
    def progress(self) -> dict[str, Any]:
        """Everything that changes and is no tensor."""
        met = [exchange.progress for exchange in self.exchanges]
        return {"ready": sorted(self.ready), "best": self.best, "exchanges": met}

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that change besides the members' own parameters."""
        return {
            f"{n}/{k}/{i}": t
            for n, kept in self.kept.items()
            for k, each in enumerate(kept)
            for i, t in enumerate(each)
        }

    def restore(self, progress: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Put back what `progress` and `tensors` have said."""
        self.ready = {*progress["ready"]}
        self.best = progress["best"]
        for exchange, met in zip(self.exchanges, progress["exchanges"], strict=True):
            exchange.restore(met)
        for name, found in self.best.items():
            count = len(self._pairs(name))
            self.kept[name] = [[tensors[f"{name}/{k}/{i}"] for i in range(count)] for k in range(len(found))]


def begins(every: float, step: int, planned: int) -> bool:
    """Whether a stretch of so many steps (below 1: of the planned ones) begins after a number of steps."""
    return Moment(every).stretch(step, planned)[0] == step
