"""Which rows of a batch take part in a term: ``.rows(selector)``.

A selector answers with 0 or 1 for each row; what it looks at is never taught. Those that compare the rows of a batch
with each other depend on which rows meet, and say so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from recdistill.data.transforms.hashing import splitmix64_tensor
from recdistill.distill.signal import Column, Scene, Signal
from recdistill.errors import TrainingError
from recdistill.losses.supervised import bce


class Selector(Protocol):
    """Says which rows take part."""

    @property
    def members(self) -> frozenset[str]:
        """The members whose outputs it needs."""
        ...

    def mask(self, scene: Scene) -> Tensor:
        """True for the selected rows, (B,)."""
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
class ByColumn:
    """Rows for which a raw column is known, or has a given value."""

    column: Column
    equals: float | None = None
    members: frozenset[str] = frozenset()

    def mask(self, scene: Scene) -> Tensor:
        """True for the selected rows, (B,)."""
        value = self.column.value(scene)
        return ~torch.isnan(value) if self.equals is None else value == self.equals


@dataclass(frozen=True)
class Agreeing:
    """Rows on which two signals are on the same side: logits by their sign, labels as they are."""

    first: Signal
    second: Signal

    @property
    def members(self) -> frozenset[str]:
        """Those of both."""
        return self.first.members | self.second.members

    def mask(self, scene: Scene) -> Tensor:
        """True for the selected rows, (B,); a row whose label is not known is not selected."""
        first, second = side(self.first, scene), side(self.second, scene)
        return (first == second) & ~torch.isnan(first) & ~torch.isnan(second)


def side(signal: Signal, scene: Scene) -> Tensor:
    """1 where a signal speaks for a click, 0 where against it, NaN where it is not known."""
    value = signal.value(scene)
    return value if isinstance(signal, Column) else (value > 0).to(value.dtype)


@dataclass(frozen=True)
class Beating:
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
class Smallest:
    """The share of the rows of a batch on which a loss is smallest; it depends on which rows meet."""

    loss: Measured
    keep: float

    @property
    def members(self) -> frozenset[str]:
        """Those of the loss."""
        return self.loss.members

    def mask(self, scene: Scene) -> Tensor:
        """True for the selected rows, (B,); of rows with equal losses all or none."""
        loss_B, weight_B = self.loss.losses(scene)
        known = weight_B > 0
        count = int(torch.ceil(self.keep * known.sum()))
        if count == 0:
            return known
        return known & (loss_B <= loss_B[known].kthvalue(count).values)


@dataclass(frozen=True)
class Sampled:
    """A share of the rows, drawn by row id and step, so that batches and processes draw alike."""

    rate: float
    members: frozenset[str] = frozenset()

    def mask(self, scene: Scene) -> Tensor:
        """True for the selected rows, (B,)."""
        salt = splitmix64_tensor(torch.tensor([scene.seed, scene.step], dtype=torch.int64)).sum()
        draw_B = (splitmix64_tensor(scene.batch.row_id_B ^ salt) & (2**53 - 1)).to(torch.float64) / 2.0**53
        return draw_B < self.rate


def present(column: Column) -> ByColumn:
    """The rows whose value is known."""
    return ByColumn(column)


def equals(column: Column, value: float) -> ByColumn:
    """The rows that have this value."""
    return ByColumn(column, float(value))


def agrees(first: Signal, second: Signal) -> Agreeing:
    """The rows on which two logits, or a logit and a label, are on the same side (E8)."""
    return Agreeing(first, second)


def beats(better: Signal, worse: Signal, label: Column, *, margin: float = 0.0) -> Beating:
    """The rows on which ``better`` predicts the label better than ``worse``, by ``margin`` of log loss (E3)."""
    return Beating(better, worse, label, margin)


def smallest(loss: Measured, *, keep: float) -> Smallest:
    """The share ``keep`` of a batch's rows whose loss is smallest (P2b).

    Raises:
        TrainingError: the share is not in (0, 1].
    """
    if not 0 < keep <= 1:
        raise TrainingError(f"smallest: keep is a share in (0, 1], found {keep}")
    return Smallest(loss, keep)


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
    "equals": equals,
    "agrees": agrees,
    "beats": beats,
    "smallest": smallest,
    "sampled": sampled,
}
