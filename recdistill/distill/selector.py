"""Which rows of a batch take part in a term: ``.rows(selector)``.

A selector answers with 0 or 1 for each row, or with the weight of each; what it looks at is never taught. Those that
compare the rows of a batch with each other depend on which rows meet, and say so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from recdistill.data.transforms.hashing import text_hash
from recdistill.distill.schedule import Now, Schedule, fixed
from recdistill.distill.signal import Column, Scenario, Scene, Signal, Traits, draw
from recdistill.errors import TrainingError
from recdistill.losses.supervised import bce


class Selector(Protocol):
    """Says which rows take part."""

    @property
    def in_batch(self) -> bool:
        """Whether a row is selected depends on the others of its batch."""
        ...

    @property
    def members(self) -> frozenset[str]:
        """The members whose outputs it needs."""
        ...

    def mask(self, scene: Scene) -> Tensor:
        """True for the selected rows, or the weight of each, (B,)."""
        ...


class Measured(Protocol):
    """A loss to rank rows by: a term that is not trained on."""

    @property
    def members(self) -> frozenset[str]:
        """The members whose outputs it needs."""
        ...

    def losses(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """The loss of each row, and 0 where it is not known; both (B,)."""
        ...


@dataclass(frozen=True)
class ByColumn(Traits):
    """Rows for which a raw column is known, is not known, or has a given value; or those of one scenario."""

    column: Column | Scenario
    equals: float | int | None = None
    known: bool = True
    members: frozenset[str] = frozenset()

    def mask(self, scene: Scene) -> Tensor:
        """True for the selected rows, (B,)."""
        value = self.column.value(scene)
        return torch.isnan(value) != self.known if self.equals is None else value == self.equals


@dataclass(frozen=True)
class Agreeing(Traits):
    """Rows on which two signals are on the same side: logits by their sign, labels as they are.

    With the rate of a column, a logit speaks for a click on as large a share of the batch as the column does; by their
    sign, the logits of rare clicks would nearly always speak against one.
    """

    first: Signal
    second: Signal
    rate: Column | None = None

    @property
    def members(self) -> frozenset[str]:
        """Those of both."""
        return self.first.members | self.second.members

    @property
    def in_batch(self) -> bool:
        """Whether a row is selected depends on the others."""
        return self.rate is not None

    def mask(self, scene: Scene) -> Tensor:
        """True for the selected rows, (B,); a row whose label is not known is not selected."""
        first, second = self._side(self.first, scene), self._side(self.second, scene)
        return (first == second) & ~torch.isnan(first) & ~torch.isnan(second)

    def _side(self, signal: Signal, scene: Scene) -> Tensor:
        """1 where a signal speaks for a click, 0 where against it, NaN where it is not known."""
        value = signal.value(scene)
        if isinstance(signal, Column):
            return value
        if self.rate is None:
            return torch.where(torch.isnan(value), value, (value > 0).to(value.dtype))
        share = self.rate.value(scene).nanmean()
        if bool(torch.isnan(share)):
            return torch.full_like(value, torch.nan)
        return (value > torch.quantile(value, 1 - share)).to(value.dtype)


@dataclass(frozen=True)
class AnyOf(Traits):
    """Rows on which at least one of several binary columns is 1."""

    columns: tuple[Column, ...]
    members: frozenset[str] = frozenset()

    def mask(self, scene: Scene) -> Tensor:
        """True for the selected rows, (B,)."""
        return torch.stack([column.value(scene) == 1 for column in self.columns]).any(0)


@dataclass(frozen=True)
class Beating(Traits):
    """Rows on which one member's loss is smaller than another's, by a margin at least."""

    better: Signal
    worse: Signal
    label: Column
    margin: float

    @property
    def members(self) -> frozenset[str]:
        """Those of both."""
        return self.better.members | self.worse.members

    def mask(self, scene: Scene) -> Tensor:
        """True for the selected rows, (B,); a row whose label is not known is not selected."""
        label_B = self.label.value(scene)
        return bce(self.better.value(scene), label_B) + self.margin < bce(self.worse.value(scene), label_B)


@dataclass(frozen=True)
class Smallest(Traits):
    """The share of the rows of a batch on which a loss is smallest; it depends on which rows meet.

    With a column the share is taken among the rows of each of its values, so that a rare class keeps its part.
    """

    loss: Measured
    keep: Schedule
    within: Column | None = None
    in_batch = True

    @property
    def members(self) -> frozenset[str]:
        """Those of the loss."""
        return self.loss.members

    def mask(self, scene: Scene) -> Tensor:
        """True for the selected rows, (B,): of n known ones ``floor(keep * n)``; of equal losses the first."""
        loss_B, weight_B = self.loss.losses(scene)
        keep = kept_share(self.keep, scene.now)
        if self.within is None:
            return lowest(loss_B, weight_B > 0, keep)
        class_B = self.within.value(scene)
        found = torch.zeros_like(weight_B, dtype=torch.bool)
        for value in torch.unique(class_B[~torch.isnan(class_B)]):
            found |= lowest(loss_B, (weight_B > 0) & (class_B == value), keep)
        return found


def lowest(loss_B: Tensor, among_B: Tensor, share: float) -> Tensor:
    """True for the given share, rounded down, of some rows: those with the smallest losses."""
    rows = torch.nonzero(among_B).flatten()
    count = int(share * len(rows) + 1e-9)  # 0.3 * 10 is a little less than 3
    found = torch.zeros_like(among_B)
    found[rows[torch.argsort(loss_B[rows], stable=True)[:count]]] = True
    return found


@dataclass(frozen=True)
class Sampled(Traits):
    """A share of the rows, drawn by row id and step, so that batches and processes draw alike."""

    rate: float
    members: frozenset[str] = frozenset()

    def mask(self, scene: Scene) -> Tensor:
        """True for the selected rows, (B,)."""
        return draw(scene, scene.batch.row_id_B, "sampled")[:, 0] < self.rate


@dataclass(frozen=True)
class Sure(Traits):
    """Every row, with the weight ``max(p, 1 - p)`` of a signal's probability p."""

    signal: Signal

    @property
    def members(self) -> frozenset[str]:
        """Those of the signal."""
        return self.signal.members

    def mask(self, scene: Scene) -> Tensor:
        """The weight of each row, (B,), between a half and one."""
        return torch.sigmoid(self.signal.value(scene).abs())


def present(column: Column) -> ByColumn:
    """The rows whose value is known."""
    return ByColumn(column)


def absent(column: Column) -> ByColumn:
    """The rows whose value is not known (D2)."""
    return ByColumn(column, known=False)


def sure(signal: Signal) -> Sure:
    """All rows, weighted by how sure a logit is of its answer.

    A term divides by the weights of its rows, so a signal that is equally sure of all of them changes nothing.

    Source: S2, Furlanello et al., 2018 (CWTM).
    Departure: none; the larger one of two classes is ``max(p, 1 - p)``.
    """
    return Sure(signal)


def equals(column: Column | Scenario, value: float | str) -> ByColumn:
    """The rows that have this value: ``equals(like, 1)``, ``equals(scenario, 'home')``.

    Raises:
        TrainingError: a binary column is compared with a text.
    """
    if isinstance(column, Scenario):
        text = value if isinstance(value, str) else f"{value:g}"
        return ByColumn(column, text_hash(text))
    if isinstance(value, str):
        raise TrainingError(f"equals: {column.name} is binary, so it is compared with 0 or 1, found {value!r}")
    return ByColumn(column, float(value))


def agrees(first: Signal, second: Signal, *, rate: Column | None = None) -> Agreeing:
    """The rows on which two logits, or a logit and a label, are on the same side.

    Args:
        first: a logit or a label.
        second: likewise.
        rate: a column; a logit then speaks for a click on as large a share of the rows as this column.

    Source: E10, Cui et al., 2017 (details unverified).
    Departure: with a rate, rank in the batch instead of the most likely class. In the job's rounds members agree with
        each other instead of with a label, which takes the place of a confidence score for rows without one.
    """
    return Agreeing(first, second, rate)


def any_of(*columns: Column) -> AnyOf:
    """The rows on which one of the binary columns is 1 (A7).

    Raises:
        TrainingError: there is no column.
    """
    if not columns:
        raise TrainingError("any: takes at least one binary column")
    return AnyOf(columns)


def beats(better: Signal, worse: Signal, label: Column, *, margin: float = 0.0) -> Beating:
    """The rows on which ``better`` predicts the label better than ``worse``, by ``margin`` of log loss (E3)."""
    return Beating(better, worse, label, margin)


def smallest(
    loss: Measured, *, keep: float | Schedule = 1.0, drop: float | Schedule = 0.0, within: Column | None = None
) -> Smallest:
    """The rows of a batch whose loss is smallest: the share ``keep``, or all but the share ``drop``.

    Args:
        loss: the loss to rank by; it is not trained on.
        keep: the share of the rows, maybe on a schedule, or
        drop: the share that is left out, likewise.
        within: a column; the share is then taken among the rows of each value.

    Raises:
        TrainingError: a share is not in (0, 1].

    Source: P2b, Han et al., 2018 (as in its code); E8, Freitag, Al-Onaizan and Sankaran, 2017, for a filter by how far
        the labels of ensemble and log are apart (from summaries).
    Departure: P2b: within each class; the job lets ``drop`` rise by step instead of epoch, and neither rate nor beta1
        falls at the end. E8: a share of each batch instead of one cut for all rows; rows are labelled out of fold; no
        variants for lists or for the best of several answers.
    """
    given = keep if isinstance(keep, Schedule) else fixed(keep)
    left = drop if isinstance(drop, Schedule) else fixed(drop)
    words, metrics = f"{given.words} - {left.words}", (*given.metrics, *left.metrics)
    share = Schedule(lambda now: given.weight(now) - left.weight(now), words, metrics)
    for step in (*range(Now().planned + 1), 10**9):
        kept_share(share, Now(step))
    return Smallest(loss, share, within)


def kept_share(share: Schedule, now: Now) -> float:
    """The share of the rows that are kept now.

    Raises:
        TrainingError: it is not in (0, 1].
    """
    found = share.weight(now)
    if not 0 < found <= 1:
        raise TrainingError(f"smallest: keeps a share in (0, 1] of the rows, found {found:g} at step {now.step}")
    return found


def sampled(rate: float) -> Sampled:
    """A random share of the rows, drawn anew in every step.

    Raises:
        TrainingError: the share is not in (0, 1].
    """
    if not 0 < rate <= 1:
        raise TrainingError(f"sampled: rate is a share in (0, 1], found {rate}")
    return Sampled(rate)


SELECTORS: dict[str, Callable[..., Selector]] = {
    "present": present,
    "absent": absent,
    "sure": sure,
    "equals": equals,
    "agrees": agrees,
    "any": any_of,
    "beats": beats,
    "smallest": smallest,
    "sampled": sampled,
}
