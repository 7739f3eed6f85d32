"""Signals that compare the rows of a batch with each other: ranks in it, rates, places exchanged within a list."""

from dataclasses import dataclass

import torch
from torch import Tensor

from recdistill.data.transforms.hashing import text_hash
from recdistill.distill.signal import CERTAIN, Column, OfSignal, Scenario, Scene, Signal, draw
from recdistill.errors import TrainingError


@dataclass(frozen=True)
class Quota(OfSignal):
    """Labels, where none is known given by rank: as large a share becomes 1 as of the known ones is 1.

    In each segment of a batch, and where a segment has no known label, by the share of the whole batch; a batch without
    any has no answer.
    """

    signal: Signal
    label: Column
    within: Scenario | Column | None = None
    in_batch = True

    def __str__(self) -> str:
        return f"quota({self.signal}, {self.label})"

    def value(self, scene: Scene) -> Tensor:
        """The label of each row, (B,), 0 or 1; NaN where nothing says how many there are to be."""
        label_B = self.label.value(scene)
        score_B = self.signal.value(scene).detach()
        found_B = label_B.clone()
        everywhere = label_B.nanmean()
        for rows in self._segments(scene, len(label_B)):
            unknown = rows[torch.isnan(label_B[rows])]
            share = label_B[rows].nanmean()
            share = everywhere if bool(torch.isnan(share)) else share
            if len(unknown) and not bool(torch.isnan(share)):
                order = torch.argsort(score_B[unknown], descending=True, stable=True)
                found_B[unknown] = 0.0
                found_B[unknown[order[: round(float(share) * len(unknown))]]] = 1.0
        return found_B

    def _segments(self, scene: Scene, rows: int) -> list[Tensor]:
        """The rows of each segment."""
        if self.within is None:
            return [torch.arange(rows)]
        _, segment_B = torch.unique(self.within.value(scene), return_inverse=True)
        return [torch.nonzero(segment_B == s).flatten() for s in range(int(segment_B.max()) + 1 if rows else 0)]


@dataclass(frozen=True)
class Scrambled(OfSignal):
    """A signal whose values change places within each list, but for the highest one, which stays.

    What is left of a teacher is how sure it is of the first row, and nothing of how it ranks the others. Places are
    drawn by row id, seed and step.
    """

    signal: Signal
    over_lists = True

    def __str__(self) -> str:
        return f"scrambled({self.signal})"

    def value(self, scene: Scene) -> Tensor:
        """The value of each row, (B,)."""
        value_B = self.signal.value(scene)
        row_id_B = scene.batch.row_id_B
        _, list_B = torch.unique(scene.batch.groups(), return_inverse=True)
        by_value = _ordered(list_B, row_id_B, -value_B.detach())
        is_first_B = torch.zeros_like(list_B)
        starts = torch.ones_like(list_B, dtype=torch.bool)
        starts[1:] = list_B[by_value][1:] != list_B[by_value][:-1]
        is_first_B[by_value[starts]] = 1
        to = _ordered(list_B, row_id_B, is_first_B)
        of = _ordered(list_B, draw(scene, row_id_B, "scrambled")[:, 0], is_first_B)
        return value_B[torch.empty_like(of).index_copy_(0, to, of)]


@dataclass(frozen=True)
class Smoothed(OfSignal):
    """Logits whose rate within each scenario moves to that of related ones: ``r' = G r``, row by row ``p + (r' - r)``.

    The rate r of a scenario is the mean probability of its rows in the batch; rows of no named scenario stay.
    """

    signal: Signal
    by: Scenario
    values: tuple[int, ...]
    graph: tuple[tuple[float, ...], ...]
    in_batch = True

    def __str__(self) -> str:
        return f"smoothed({self.signal})"

    def value(self, scene: Scene) -> Tensor:
        """The logit of each row, (B,)."""
        score_B = torch.sigmoid(self.signal.value(scene))
        is_of_BK = self.by.value(scene).unsqueeze(1) == torch.tensor(self.values)
        count_K = is_of_BK.sum(0)
        rate_K = (score_B.detach().unsqueeze(1) * is_of_BK).sum(0) / count_K.clamp(min=1)
        near_KK = torch.tensor(self.graph) * (count_K > 0)  # a scenario without rows has no rate
        change_K = near_KK @ rate_K / near_KK.sum(1).clamp(min=CERTAIN) - rate_K
        return torch.logit(score_B + is_of_BK.to(score_B.dtype) @ change_K, CERTAIN)


def _ordered(list_B: Tensor, then_B: Tensor, by_B: Tensor) -> Tensor:
    """The rows list by list, within a list by a key, and those of equal keys by another one."""
    order = torch.argsort(then_B, stable=True)
    for key_B in (by_B, list_B):
        order = order[torch.argsort(key_B[order], stable=True)]
    return order


def quota(signal: Signal, label: Column, *, within: Scenario | Column | None = None) -> Quota:
    """Hard labels for rows without one, by rank: as many are 1 as among the rows with one, in each segment (D2).

    Source: D2, Radosavovic et al., 2018 (details unverified).
    Departure: the quota is met in each batch and segment instead of by one threshold, so over the log the rate is that
        of the labels but for chance; labels are made anew in each step instead of being written once.
    """
    return Quota(signal, label, within)


def smoothed(signal: Signal, *, by: Scenario, values: str, graph: str) -> Smoothed:
    """Logits whose rates within scenarios are smoothed over a graph of related ones (P2a).

    Args:
        signal: the logits.
        by: ``scenario``.
        values: the scenarios, a text: ``'0 1 2'``.
        graph: how much each of them trusts each, a text of as many lines: ``'1 .5 0; .5 1 .5; 0 .5 1'``; lines are
            divided by their sums.

    Raises:
        TrainingError: the graph is no square of numbers, or trusts nobody.
    """
    names = values.split()
    try:
        lines = tuple(tuple(float(word) for word in line.split()) for line in graph.split(";"))
    except ValueError:
        lines = ()
    square = len(lines) == len(names) and all(len(line) == len(names) for line in lines)
    if not names or not square or any(min(line) < 0 or sum(line) <= 0 for line in lines):
        raise TrainingError(
            f"smoothed: expected {len(names)} lines of {len(names)} numbers that are not negative and not all 0, "
            f"found {graph!r}"
        )
    shares = tuple(tuple(number / sum(line) for number in line) for line in lines)
    return Smoothed(signal, by, tuple(text_hash(name) for name in names), shares)


def scrambled(signal: Signal) -> Scrambled:
    """Within each list all values but the highest change places, drawn anew in every step (S2, DKPP)."""
    return Scrambled(signal)
