"""Items that a user has not taken, drawn as negatives; and other draws from a graph.

A draw depends on seed, step and row id alone (`draws`), never on the batch. A user's own items are left out exactly and
without trial and error: their weights are cut out of the line from which items are drawn.

    items     2   3   4   5   6          weights w, total W
    line     |---|-|-----|--|----|
    positives    ^        ^^             of the user: 3 and 5; the line without them is W - w3 - w5 long
    draw x on the shorter line, count which positives lie before it, add their weights, look the item up

Weights are integers, so that every step is exact and the probability of each item is known.
"""

# Shapes: B rows, M draws of each, E edges, U users, I items.

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from recdistill.data.draws import uniforms
from recdistill.data.graph import Graph, Positives
from recdistill.data.transforms.rows import FIRST
from recdistill.errors import LogError

TOTAL = 2**40  # of the weights of all items, so that their quotients keep 12 digits and products with a draw stay exact


class Drawn(NamedTuple):
    """Items, int64 (B, M), and the logarithm of how often each is expected among the row's draws, float32 (B, M)."""

    item_BM: Tensor
    log_q_BM: Tensor


class InBatch(NamedTuple):
    """The items of a batch as each other's negatives.

    Attributes:
        label_BM: 1 for a row's own item, 0 for a negative, NaN where an item of the batch is another positive of the
            user, float32 (B, M) with M = B.
        log_q_BM: the logarithm of how often each item is expected among the other rows, 0 for a row's own, (B, M).
    """

    label_BM: Tensor
    log_q_BM: Tensor


@dataclass(frozen=True, eq=False)
class Negatives:
    """Draws with replacement from the items that a user has not taken, in proportion to integer weights.

    Attributes:
        positives: the items of each user.
        weight_I: the weight of each item row, int64 (I,); 0 for rows that are never drawn.
    """

    positives: Positives
    weight_I: Tensor

    @classmethod
    def uniform(cls, graph: Graph) -> "Negatives":
        """All items alike, also those without edges."""
        weight_I = torch.ones(graph.items, dtype=torch.int64)
        weight_I[:FIRST] = 0
        return cls(graph.positives, weight_I)

    @classmethod
    def popular(cls, graph: Graph, alpha: float = 0.75) -> "Negatives":
        """In proportion to ``degree ** alpha``; items without edges are not drawn unless alpha is 0.

        Raises:
            LogError: alpha is negative.

        Source: alpha = 3/4, Mikolov et al., 2013, section 2.2.
        """
        if alpha < 0:
            raise LogError(f"negatives: alpha must not be negative, found {alpha}; 0 draws all items alike")
        share_I = graph.item_degree_I.double() ** alpha
        share_I[:FIRST] = 0
        weight_I = (share_I / share_I.sum() * TOTAL).round().to(torch.int64)
        return cls(graph.positives, torch.where(share_I > 0, weight_I.clamp(min=1), 0))

    def draw(self, user_B: Tensor, row_id_B: Tensor, count: int, *, seed: int, step: int) -> Drawn:
        """Some negatives of each row, independent of each other.

        Args:
            user_B: the user of each row, int64 (B,).
            row_id_B: what the draws are keyed by, int64 (B,).
            count: M, negatives of each row.
            seed: of the run.
            step: of the training.

        Raises:
            LogError: a user has taken every item there is.

        Example:
            >>> graph = Graph.of(3, 6, torch.tensor([2, 2]), torch.tensor([3, 5]))
            >>> drawn = Negatives.uniform(graph).draw(torch.tensor([2, 2]), torch.tensor([0, 1]), 4, seed=0, step=0)
            >>> sorted(set(drawn.item_BM.flatten().tolist())), drawn.log_q_BM[0, 0]
            ([2, 4], tensor(0.6931))
        """
        taken_B = self._weight_before[self.positives.offsets[user_B + 1]]
        taken_B = taken_B - self._weight_before[self.positives.offsets[user_B]]
        left_B = int(self._ends_I[-1]) - taken_B
        if bool((left_B <= 0).any()):
            user = int(user_B[left_B <= 0][0])
            raise LogError(
                f"negatives: user row {user} has taken all items that can be drawn, so that no negative is left; leave "
                "such users out, or raise the graph's minimum degree of items"
            )
        draw_BM = uniforms(row_id_B, count, purpose="negatives", seed=seed, step=step)
        place_BM = torch.minimum((draw_BM * left_B.unsqueeze(1)).to(torch.int64), left_B.unsqueeze(1) - 1)
        item_BM = torch.searchsorted(self._ends_I, place_BM + self._skipped(user_B, place_BM), right=True)
        log_q_BM = (count * self.weight_I[item_BM].double() / left_B.unsqueeze(1)).log()
        return Drawn(item_BM, log_q_BM.float())

    def _skipped(self, user_B: Tensor, place_BM: Tensor) -> Tensor:
        """The weight of the user's positives that lie before each place on the line without them."""
        first_B1 = self.positives.offsets[user_B].unsqueeze(1)
        low_BM = first_B1.expand_as(place_BM)
        high_BM = self.positives.offsets[user_B + 1].unsqueeze(1).expand_as(place_BM)
        before_B1 = self._weight_before[first_B1]
        longest = int(self.positives.count(user_B).max()) if len(user_B) else 0
        for _ in range(longest.bit_length()):  # binary search in all lists at once
            middle_BM = (low_BM + high_BM) // 2
            inside_BM = low_BM < high_BM
            safe_BM = middle_BM.clamp(max=max(len(self._gap_E) - 1, 0))
            is_before_BM = inside_BM & (self._gap_E[safe_BM] + before_B1 <= place_BM)
            low_BM = torch.where(is_before_BM, middle_BM + 1, low_BM)
            high_BM = torch.where(inside_BM & ~is_before_BM, middle_BM, high_BM)
        return self._weight_before[low_BM] - before_B1

    @cached_property
    def _ends_I(self) -> Tensor:
        """Where each item ends on the line."""
        return self.weight_I.cumsum(0)

    @cached_property
    def _weight_before(self) -> Tensor:
        """The weight of all edges before each edge, int64 (E + 1,)."""
        weight_E = self.weight_I[self.positives.item_E]
        return torch.cat([weight_E.new_zeros(1), weight_E.cumsum(0)])

    @cached_property
    def _gap_E(self) -> Tensor:
        """Where each positive starts on the line, less the weight of all edges before it; ascending within a user."""
        starts_I = self._ends_I - self.weight_I
        return starts_I[self.positives.item_E] - self._weight_before[:-1]


def in_batch(user_B: Tensor, item_B: Tensor, positives: Positives, share_I: Tensor) -> InBatch:
    """Each row's item against the items of the other rows.

    Popular items are in more batches; subtracting ``log_q`` from the scores undoes that in a sampled softmax. Among the
    B - 1 others an item is expected B - 1 times its share of all rows.

    Args:
        user_B: the user of each row.
        item_B: the item of each row.
        positives: the items of each user.
        share_I: the share of an epoch's rows whose item it is, float64 (I,).

    Source: Yi et al., 2019, equation 3.
    Departure: frequencies are counted instead of estimated; a row's own item is there for certain, hence not corrected.
    """
    is_own_BM = item_B.unsqueeze(0) == item_B.unsqueeze(1)
    label_BM = torch.zeros(is_own_BM.shape)
    label_BM[positives.among(user_B, item_B) | is_own_BM] = torch.nan
    label_BM.fill_diagonal_(1.0)
    log_q_BM = (max(len(item_B) - 1, 1) * share_I[item_B]).log().float().repeat(len(item_B), 1)
    return InBatch(label_BM, log_q_BM.fill_diagonal_(0.0))


def some_positives(
    positives: Positives, user_B: Tensor, row_id_B: Tensor, count: int, *, seed: int, step: int
) -> Tensor:
    """Some of each user's items, int64 (B, M), all alike and with replacement.

    Raises:
        LogError: a user has none.
    """
    length_B = positives.count(user_B)
    if bool((length_B == 0).any()):
        user = int(user_B[length_B == 0][0])
        raise LogError(f"positives: user row {user} has no item in the graph; draw for users with edges only")
    draw_BM = uniforms(row_id_B, count, purpose="positives", seed=seed, step=step)
    place_BM = torch.minimum((draw_BM * length_B.unsqueeze(1)).to(torch.int64), length_B.unsqueeze(1) - 1)
    return positives.item_E[positives.offsets[user_B].unsqueeze(1) + place_BM]


def by_rank(row_id_B: Tensor, ranks: int, count: int, *, temperature: float, seed: int, step: int) -> Tensor:
    """Some of the places 0 to ``ranks - 1`` of a teacher's ranking, ascending, each at most once, int64 (B, M).

    One place after the other is drawn in proportion to ``exp(-(place + 1) / temperature)`` among those left, which is
    the same as keeping the highest of ``-(place + 1) / temperature + Gumbel noise``.

    Args:
        row_id_B: what the draws are keyed by.
        ranks: length of the teacher's ranking.
        count: M, places of each row.
        temperature: T > 0, in places; larger reaches further down.
        seed: of the run.
        step: of the training, or the epoch.

    Example:
        >>> by_rank(torch.tensor([0, 1]), 100, 3, temperature=0.01, seed=0, step=0).tolist()
        [[0, 1, 2], [0, 1, 2]]

    Source: RRD, Kang et al., 2020, section 3.2.2; Gumbel top-k, Kool et al., 2019.
    """
    if not 0 < count <= ranks or temperature <= 0:
        raise LogError(
            f"by_rank: draws {count} of {ranks} places at temperature {temperature}; give a number between 1 and all "
            "places, and a temperature above 0"
        )
    draw_BR = uniforms(row_id_B, ranks, purpose="by rank", seed=seed, step=step).clamp(min=2.0**-54)
    noise_BR = -torch.log(-torch.log(draw_BR))
    place_R = torch.arange(1, ranks + 1, dtype=torch.float64)
    return (noise_BR - place_R / temperature).topk(count, dim=1).indices.sort(dim=1).values
