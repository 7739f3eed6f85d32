"""A term: which loss compares what, how much it weighs, and on which rows.

The first argument of a loss learns; every other is a target and is detached unless written ``live(x)``. Losses return
one value per row, and the engine divides once, by the summed weights of the rows that the term selects.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from recdistill.distill.combine import fold_of
from recdistill.distill.ranked import is_ranked
from recdistill.distill.schedule import Metric, Now, Schedule
from recdistill.distill.selector import Selector
from recdistill.distill.signal import Remembering, Scene, Signal, Traits, flows, unknown_at_times, walk
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
        scope: whether the loss returns one value per ``row``, per ``list``, or one for the whole ``batch``.
        in_batch: whether the value of a row depends on the other rows of the batch.
        fold: (k, n) if the learner may not learn from the rows of the fold k of n.
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
    scope: str = "row"
    in_batch: bool = False
    fold: tuple[int, int] | None = None

    def __mul__(self, factor: "float | Schedule") -> "Term":
        if isinstance(factor, Schedule):
            return replace(self, schedules=(*self.schedules, factor), words=f"{self.words} * {factor.words}")
        return replace(self, scale=self.scale * factor, words=f"{self.words} * {factor}")

    __rmul__ = __mul__

    @property
    def taught(self) -> frozenset[str]:
        """The members the term may move: those behind its learner and its live targets."""
        live = [t.members for t in self.targets if flows(t)]
        return self.learner.members.union(*live)

    @property
    def members(self) -> frozenset[str]:
        """Every member whose outputs the term needs."""
        looked_at = self.rows.members if self.rows is not None else frozenset()
        return self.learner.members.union(looked_at, *(t.members for t in self.targets))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The validation metrics that its weight depends on."""
        return tuple(metric for part in walk(self) if isinstance(part, Schedule) for metric in part.metrics)

    @property
    def memories(self) -> tuple[Remembering, ...]:
        """What it remembers of earlier steps."""
        return tuple(part for part in walk(self) if isinstance(part, Remembering))

    @property
    def exempt(self) -> bool:
        """Whether its value depends on which rows meet in a batch, so that parts of a batch do not add up to it."""
        depends = any(isinstance(part, Traits | Term) and part.in_batch for part in walk(self))
        return depends or self.scope != "row" or self.ranked

    @property
    def ranked(self) -> bool:
        """Whether it compares the candidates of anchors, and has one value for each of these."""
        return is_ranked(self)

    def weight(self, now: Now) -> float:
        """The factor of the whole term at a moment of the phase."""
        weight = self.scale
        for schedule in self.schedules:
            weight *= schedule.weight(now)
        return weight

    def losses(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """The loss of each row, and the weight with which the row takes part, both (B,).

        A row whose target is unknown (NaN) takes no part; the target value of a row that takes no part, even NaN, has
        no effect. Losses that compare the rows of a batch see only those that take part, (R,). List losses: one value
        per list, (G,), over its participating rows; its weight is their mean weight. Batch losses: one value, with the
        total weight of the rows that take part, both (1,). Where candidates are compared, the rows are the anchors.
        """
        targets = [t.value(scene) if flows(t) else t.value(scene).detach() for t in self.targets]
        weight_B = self._weights(scene)
        if self.ranked:
            weight_B = weight_B[: scene.batch.ranked().anchors]
        partial = [value for signal, value in zip(self.targets, targets, strict=True) if unknown_at_times(signal)]
        for value in partial:
            known_B = ~torch.isnan(value) if value.dim() == 1 else ~torch.isnan(value).flatten(1).any(1)
            weight_B = weight_B * known_B
        learner = self.learner.value(scene)
        if self.scope == "row" and not self.in_batch:
            if partial or self.rows is not None:
                targets = [only(weight_B > 0, value) for value in targets]
            return self.loss(learner, *targets, **self.options), weight_B
        rows = torch.nonzero(weight_B > 0).flatten()
        of_rows = [value[rows] for value in (learner, *targets)]
        if self.scope == "row":
            return self.loss(*of_rows, **self.options), weight_B[rows]
        if self.scope == "batch":
            loss = self.loss(*of_rows, **self.options) if len(rows) else learner.sum() * 0
            return loss.reshape(1), weight_B.sum().reshape(1)
        _, list_R, size_G = torch.unique(scene.batch.groups()[rows], return_inverse=True, return_counts=True)
        weight_G = torch.zeros(len(size_G)).index_add(0, list_R, weight_B[rows]) / size_G
        return self.loss(*of_rows, **{LIST: list_R}, **self.options), weight_G

    def _weights(self, scene: Scene) -> Tensor:
        """The weight of each row as far as selector and fold decide it, (B,)."""
        weight_B = scene.batch.weight_B
        if self.rows is not None:
            with torch.no_grad():
                weight_B = weight_B * self.rows.mask(scene)
        if self.fold is not None:
            mine, folds = self.fold
            weight_B = weight_B * (fold_of(scene.batch.row_id_B, folds) != mine)
        return weight_B


def only(part_B: Tensor, value: Tensor) -> Tensor:
    """The value of the rows that take part, zeros on the others."""
    return torch.where(part_B.reshape(-1, *[1] * (value.dim() - 1)), value, torch.zeros_like(value))


def reduce(loss_B: Tensor, weight_B: Tensor, total: Tensor) -> Tensor:
    """The weighted sum over the rows, divided by ``total``; zero, not NaN, where no row takes part.

    This is the only reduction of the project. Rows that take no part are cut out before the product, so that an
    infinite loss of theirs cannot turn it into NaN.
    """
    loss_B = torch.where(weight_B > 0, loss_B, torch.zeros_like(loss_B))
    return (loss_B * weight_B).sum() / torch.where(total > 0, total, torch.ones_like(total))
