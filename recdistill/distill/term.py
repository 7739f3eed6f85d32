"""A term: which loss compares what, how much it weighs, and on which rows.

The first argument of a loss learns; every other is a target and is detached unless written ``live(x)``. Losses return
one value per row, and the engine divides once, by the summed weights of the rows that the term selects.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from recdistill.distill.schedule import Schedule
from recdistill.distill.selector import Selector
from recdistill.distill.signal import Column, Live, Scene, Signal
from recdistill.losses.catalog import LIST


@dataclass(frozen=True)
class Term:
    """``loss(learner, *targets, **options) * weight .rows(selector)``.

    Attributes:
        words: the term as it is written, which is also its name in logs.
        loss: the per-row loss.
        learner: the signal that is taught.
        targets: the signals to agree with.
        options: hyper-parameters of the loss.
        scale: constant factor.
        schedules: factors that change over the steps of the phase.
        rows: the rows that take part; by default all of them.
        over: what the sum is divided by: the weights of the ``selected`` rows, or of all rows of the ``batch``.
        per_list: whether the loss returns one value per list instead of one per row.
    """

    words: str
    loss: Callable[..., Tensor]
    learner: Signal
    targets: tuple[Signal, ...]
    options: Mapping[str, float | str] = field(default_factory=dict)
    scale: float = 1.0
    schedules: tuple[Schedule, ...] = ()
    rows: Selector | None = None
    over: str = "selected"
    per_list: bool = False

    def __mul__(self, factor: "float | Schedule") -> "Term":
        if isinstance(factor, Schedule):
            return replace(self, schedules=(*self.schedules, factor), words=f"{self.words} * {factor.words}")
        return replace(self, scale=self.scale * factor, words=f"{self.words} * {factor}")

    __rmul__ = __mul__

    @property
    def taught(self) -> frozenset[str]:
        """The members that the term moves: its learner's, and those of live targets."""
        live = [t.members for t in self.targets if isinstance(t, Live)]
        return self.learner.members.union(*live)

    @property
    def members(self) -> frozenset[str]:
        """Every member whose outputs the term needs."""
        looked_at = self.rows.members if self.rows is not None else frozenset()
        return self.learner.members.union(looked_at, *(t.members for t in self.targets))

    def weight(self, step: int, planned: int) -> float:
        """The factor of the whole term at a step of the phase."""
        weight = self.scale
        for schedule in self.schedules:
            weight *= schedule.weight(step, planned)
        return weight

    def losses(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """The loss of each row, and the weight with which the row takes part, both (B,); or of each list, both (G,).

        A row whose target is not known (NaN) takes no part. A list consists of those of its rows that do, and weighs
        as much as one of them on average.
        """
        targets = [t.value(scene) if isinstance(t, Live) else t.value(scene).detach() for t in self.targets]
        weight_B = scene.batch.weight_B
        if self.rows is not None:
            with torch.no_grad():
                weight_B = weight_B * self.rows.mask(scene)
        for i, (signal, value) in enumerate(zip(self.targets, targets, strict=True)):
            if isinstance(signal, Column):
                known_B = ~torch.isnan(value)
                weight_B = weight_B * known_B
                targets[i] = torch.where(known_B, value, torch.zeros_like(value))
        learner = self.learner.value(scene)
        if not self.per_list:
            return self.loss(learner, *targets, **self.options), weight_B
        rows = torch.nonzero(weight_B > 0).flatten()
        _, list_R, size_G = torch.unique(scene.batch.groups()[rows], return_inverse=True, return_counts=True)
        weight_G = torch.zeros(len(size_G)).index_add(0, list_R, weight_B[rows]) / size_G
        return self.loss(learner[rows], *(t[rows] for t in targets), **{LIST: list_R}, **self.options), weight_G


def reduce(loss_B: Tensor, weight_B: Tensor, total: Tensor) -> Tensor:
    """The weighted sum over the rows, divided by ``total``; zero, not NaN, where no row takes part.

    This is the only reduction of the project. Rows that take no part are cut out before the product, so that an
    infinite loss of theirs cannot turn it into NaN.
    """
    loss_B = torch.where(weight_B > 0, loss_B, torch.zeros_like(loss_B))
    return (loss_B * weight_B).sum() / torch.where(total > 0, total, torch.ones_like(total))
