"""A feed of anchors with candidates: users with items to be ranked, or items with users.

An epoch visits every edge of a graph, or every node that has one. Each anchor gets its own positive and the candidates
that are asked for; what is drawn depends on seed, epoch and anchor alone. The rows of a batch are the anchors, each a
pair that occurs in the log, and behind them every candidate once, with its own side alone.

    row  user item              anchor   own  negatives
     0    u3   i7               0: u3     3    5  4            parts: [3 6]   [5 4]
     1    u5   i9               1: u5     6    4  5                            [4 5]
     3    -    i7
     4    -    i2
"""

# Shapes: A anchors of a batch, M candidates of each, E edges, B rows.

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from recdistill.data.batch import Batch, Candidates
from recdistill.data.catalogue import Catalogue
from recdistill.data.graph import Graph
from recdistill.data.negatives import Negatives, by_rank, in_batch, some_positives
from recdistill.data.reader import read_ahead
from recdistill.errors import TrainingError
from recdistill.spec.graph import CandidatesSpec

OTHER = {"user": "item", "item": "user"}
NODE = 2**40  # added to the number of a node, so that it is no number of an edge


@dataclass
class CandidateFeed:
    """Anchors of a graph with candidates.

    Attributes:
        graph: the users and items, with the edges of training.
        catalogue: the columns of both.
        spec: what is asked for.
        serving: the serving columns of the batches, in order.
        labels: raw labels of the batches, none of which is known.
        order: of each anchor the candidates that a member ranks highest, best first, -1 behind the last,
            int64 (anchors, top); given by the training loop where candidates are drawn from it.
    """

    graph: Graph
    catalogue: Catalogue
    spec: CandidatesSpec
    serving: tuple[str, ...]
    labels: tuple[str, ...] = ()
    order: Tensor | None = field(default=None, repr=False)

    @cached_property
    def sides(self) -> Graph:
        """The graph with the anchors as its users."""
        return self.graph if self.spec.anchor == "user" else self.graph.flipped()

    @cached_property
    def negatives(self) -> Negatives:
        """What negatives are drawn from."""
        return Negatives.popular(self.sides, self.spec.popularity)

    @cached_property
    def group_I(self) -> Tensor:
        """The popularity group of each candidate."""
        return self.sides.popularity_groups(self.spec.groups)

    @cached_property
    def share_I(self) -> Tensor:
        """Expected share of an epoch's anchors whose positive is each candidate, float64 (I,)."""
        sides = self.sides
        if self.spec.each == "edge":
            return sides.item_degree_I.double() / len(sides.item_E)
        often_E = sides.user_degree_U[sides.user_E].double().reciprocal()  # one of its own, all alike
        return torch.bincount(sides.item_E, often_E, minlength=sides.items) / len(self.nodes)

    @cached_property
    def nodes(self) -> Tensor:
        """The anchors that have an edge, ascending."""
        found: Tensor = torch.unique(self.sides.user_E)
        return found

    def steps(self, batch: int) -> int:
        """Batches of one epoch."""
        return math.ceil(self.rows() / (self.spec.batch or batch))

    def rows(self) -> int:
        """Anchors of one epoch."""
        return len(self.sides.user_E) if self.spec.each == "edge" else len(self.nodes)

    def row_ids(self) -> Tensor:
        """The ids of all anchors, int64 (N,)."""
        return torch.arange(self.rows()) if self.spec.each == "edge" else self.nodes + NODE

    def epoch(self, batch: int, *, seed: int, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch, every anchor once, read ahead."""
        return read_ahead(self._batches(batch, seed, epoch))

    def _batches(self, batch: int, seed: int, epoch: int) -> Iterator[Batch]:
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(self.rows()))
        size = self.spec.batch or batch
        for number, first in enumerate(range(0, len(order), size)):
            yield self._batch(order[first : first + size], number, seed, epoch)

    def _batch(self, place_A: Tensor, number: int, seed: int, epoch: int) -> Batch:
        if self.spec.each == "edge":
            id_A, anchor_A, own_A = place_A, self.sides.user_E[place_A], self.sides.item_E[place_A]
        else:
            anchor_A = self.nodes[place_A]
            id_A = anchor_A + NODE
            own_A = some_positives(self.sides.positives, anchor_A, id_A, 1, seed=seed, step=epoch)[:, 0]
        drawn = _Drawing(self, id_A, anchor_A, own_A, seed, epoch).parts(number)
        return self._assembled(id_A, anchor_A, own_A, drawn)

    def _assembled(self, id_A: Tensor, anchor_A: Tensor, own_A: Tensor, drawn: "list[_Part]") -> Batch:
        """The rows, and where each candidate stands among them."""
        anchors = len(id_A)
        flat = torch.cat([part.item.flatten() for part in drawn])
        item_R, place = torch.unique(flat, return_inverse=True)
        placed = place.split([part.item.numel() for part in drawn])
        parts = tuple((where + anchors).reshape(part.item.shape) for where, part in zip(placed, drawn, strict=True))
        marks = {name: torch.cat([part.mark(name, anchors) for part in drawn], 1) for name in ("own", "taken", "log_q")}
        if self.spec.groups:
            wide = [part.item.expand(anchors, -1) for part in drawn]
            marks["popularity"] = self.group_I[torch.cat(wide, 1)].float()
        nothing_R = torch.zeros_like(item_R)
        row_B = {
            self.spec.anchor: torch.cat([anchor_A, nothing_R]), OTHER[self.spec.anchor]: torch.cat([own_A, item_R])
        }  # fmt: skip
        rows = anchors + len(item_R)
        unknown = {name: torch.full((rows,), math.nan) for name in self.labels}
        weight_B = torch.cat([torch.ones(anchors), torch.zeros(len(item_R))])
        candidates = Candidates(self.spec.anchor, parts, marks)
        serving = self.catalogue.join(self.serving, row_B)
        return Batch(torch.cat([id_A, -1 - item_R]), serving, unknown, weight_B, candidates=candidates)


@dataclass(frozen=True)
class _Part:
    """Some candidates, one set per anchor, (A, n), or one for all, (n,); and their marks, (A, n) or a number.

    Attributes:
        item: rows of the candidates' table.
        own, taken, log_q: as in `Candidates`.
    """

    item: Tensor
    own: Tensor | float
    taken: Tensor | float
    log_q: Tensor | float = 0.0

    def mark(self, name: str, anchors: int) -> Tensor:
        """One of the marks, (A, n)."""
        value = getattr(self, name)
        shape = (anchors, self.item.shape[-1])
        return value.expand(shape) if isinstance(value, Tensor) else torch.full(shape, value)


@dataclass(frozen=True)
class _Drawing:
    """Draws the candidates of some anchors."""

    feed: CandidateFeed
    id_A: Tensor
    anchor_A: Tensor
    own_A: Tensor
    seed: int
    epoch: int

    def parts(self, number: int) -> list[_Part]:
        """All that are asked for, the anchor's own first."""
        spec = self.feed.spec
        found = [_Part(self.own_A.unsqueeze(1), 1.0, 1.0)]
        if spec.positives:
            found.append(_Part(self._positives(spec.positives), math.nan, 1.0))
        if spec.negatives:
            found.append(self._shared(spec.negatives, number) if spec.shared else self._negatives(spec.negatives))
        if spec.in_batch:
            found.append(self._in_batch())
        if spec.ranked is not None:
            found.append(self._ranked())
        return found

    def _positives(self, count: int) -> Tensor:
        return some_positives(
            self.feed.sides.positives, self.anchor_A, self.id_A, count, seed=self.seed, step=self.epoch + 1
        )

    def _negatives(self, count: int) -> _Part:
        item_AM, log_q_AM = self.feed.negatives.draw(self.anchor_A, self.id_A, count, seed=self.seed, step=self.epoch)
        return _Part(item_AM, 0.0, 0.0, log_q_AM)

    def _shared(self, count: int, number: int) -> _Part:
        """Shared negatives, drawn for an anchor with no positives."""
        nobody_M, id_M = torch.zeros(count, dtype=torch.int64), -1 - number * count - torch.arange(count)
        item_M1, log_q_M1 = self.feed.negatives.draw(nobody_M, id_M, 1, seed=self.seed, step=self.epoch)
        item_M, log_q_M = item_M1[:, 0], log_q_M1[:, 0] + math.log(count)
        taken_AM = self.feed.sides.positives.among(self.anchor_A, item_M)
        own_AM = torch.zeros(taken_AM.shape).masked_fill(taken_AM, math.nan)
        return _Part(item_M, own_AM, taken_AM.float(), log_q_M)

    def _in_batch(self) -> _Part:
        label_AA, log_q_AA = in_batch(self.anchor_A, self.own_A, self.feed.sides.positives, self.feed.share_I)
        taken_AA = label_AA.isnan().float().fill_diagonal_(1.0)
        return _Part(self.own_A, label_AA.fill_diagonal_(math.nan), taken_AA, log_q_AA)

    def _ranked(self) -> _Part:
        ranked, order = self.feed.spec.ranked, self.feed.order
        if ranked is None or order is None:
            raise TrainingError("candidates: the ranking that they are drawn from was not made; this is a defect")
        anchor_A = self.anchor_A
        if ranked.shuffled:  # the next anchor's, so that every ranking is used as often as before
            nodes = self.feed.nodes
            anchor_A = nodes[(torch.searchsorted(nodes, anchor_A) + 1) % len(nodes)]
        place_AM = by_rank(
            self.id_A, order.shape[1], ranked.count, temperature=ranked.temperature, seed=self.seed, step=self.epoch
        )
        item_AM = order[anchor_A].gather(1, place_AM)
        taken_AM = self.feed.sides.positives.contains(self.anchor_A, item_AM.clamp(min=0)).float()
        return _Part(item_AM.clamp(min=0), math.nan, taken_AM.masked_fill(item_AM < 0, math.nan))
