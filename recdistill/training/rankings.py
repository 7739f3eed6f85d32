"""Lists of items as members make them: vectors of all users and items, their best places, how good the lists are."""

# Shapes: U user rows, I item rows, D width, K places, C rows at a time.

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from recdistill.data.batch import Batch
from recdistill.data.edges import build_graph, lost_events
from recdistill.data.encoded import EncodedLog
from recdistill.data.graph import Graph, Positives
from recdistill.data.transforms.rows import FIRST
from recdistill.distill.checks import behind
from recdistill.errors import LogError, TrainingError
from recdistill.evaluation.auc import Bools, Counts, Floats
from recdistill.evaluation.topk import Lists, TopK, draw_candidates, full_ranking, sampled_ranking
from recdistill.spec.graph import SIDES, GraphSpec, RankingSpec
from recdistill.training.cast import Cast
from recdistill.training.play import play

CHUNK = 8192  # rows that are answered for at a time
SCORES = 2**24  # scores of a block at a time
DENSER = 32  # how many times more scores a matrix product makes in the time of scattered ones


@dataclass(frozen=True)
class Vectors:
    """What a member makes of every user and every item; the inner product of two is the score of the pair.

    Attributes:
        user_UD, item_ID: by row of their tables.
    """

    user_UD: Tensor
    item_ID: Tensor

    def of(self, side: str) -> Tensor:
        """Those of users or items."""
        return self.user_UD if side == "user" else self.item_ID

    def scores(self, user_B: Counts) -> Floats:
        """The scores of all items for some users, (B, I)."""
        return (self.user_UD[torch.from_numpy(user_B)] @ self.item_ID.t()).numpy()

    def pair_scores(self, user_B: Counts, item_BN: Counts) -> Floats:
        """The scores of some items for each of some users, (B, N).

        A matrix product reads each vector once, where gathering copies one for every pair; so unless few of very many
        items are wanted, all of them are scored.
        """
        user_BD, place_BN = self.user_UD[torch.from_numpy(user_B)], torch.from_numpy(item_BN)
        if len(self.item_ID) > DENSER * item_BN.shape[1]:
            return torch.einsum("bd,bnd->bn", user_BD, self.item_ID[place_BN]).numpy()
        block = max(1, SCORES // len(self.item_ID))
        parts = zip(user_BD.split(block), place_BN.split(block), strict=True)
        return torch.cat([(some_CD @ self.item_ID.t()).gather(1, place_CN) for some_CD, place_CN in parts]).numpy()


def vectors_of(cast: Cast, name: str, *, seed: int) -> Vectors:
    """The vectors of a member that ranks, as it serves.

    Raises:
        TrainingError: it has diverged.
    """
    assert cast.nodes is not None
    catalogue, sides = cast.nodes.catalogue, {}
    needed = sorted(behind({name}, cast.members))
    columns = dict.fromkeys(column for each in needed for column in cast.members[each].serving)
    for k, side in enumerate(SIDES):
        parts = []
        for first in range(0, catalogue.rows(side), CHUNK):
            row_C = torch.arange(first, min(first + CHUNK, catalogue.rows(side)))
            batch = Batch(row_C, catalogue.join(columns, {side: row_C}), {}, torch.ones(len(row_C)))
            with torch.no_grad():
                parts.append(play(cast, needed, batch, seed=seed)[name].hidden[k - len(SIDES)].cpu())
        sides[side] = torch.cat(parts)
        if not bool(sides[side].isfinite().all()):
            raise TrainingError(
                f"{name}: vectors of {side}s are NaN or infinite; lower its learning rates, or look for extreme values"
            )
    return Vectors(sides["user"], sides["item"])


def top_places(vectors: Vectors, taken: Positives, anchor: str, count: int) -> Tensor:
    """The candidates that each anchor scores highest among those that it has not taken, best first.

    Args:
        vectors: of users and items.
        taken: what each anchor has taken.
        anchor: the side of the anchors.
        count: K.

    Returns:
        Rows, int64 (anchors, K); -1 behind the last that is left.
    """
    anchor_AD, other_CD = vectors.of(anchor), vectors.of("item" if anchor == "user" else "user")
    block, found = max(1, SCORES // len(other_CD)), []
    for first in range(0, len(anchor_AD), block):
        row_B = torch.arange(first, min(first + block, len(anchor_AD)))
        score_BC = anchor_AD[row_B] @ other_CD.t()
        score_BC[:, :FIRST] = -torch.inf
        item_L, offsets = taken.of(row_B)
        score_BC[torch.repeat_interleave(torch.arange(len(row_B)), offsets.diff()), item_L] = -torch.inf
        value_BK, place_BK = score_BC.topk(min(count, score_BC.shape[1]), dim=1)
        found.append(place_BK.masked_fill(value_BK == -torch.inf, -1))
    return torch.cat(found)


@dataclass(frozen=True)
class Rankings:
    """How lists are judged on one split.

    Attributes:
        spec: cuts and protocol.
        relevant: what each user takes in the split.
        known: what each user has taken before, which is left out.
        candidate_I: the items that may be shown.
        sampled: the others of each held-out item, (draws, users, others), under the protocol of sampled candidates.
        lost_W: under that protocol, the users whose held-out item training has not known: they find nothing.
    """

    spec: RankingSpec
    relevant: Lists
    known: Lists
    candidate_I: Bools
    sampled: tuple[Counts, Counts, Counts] | None = None
    lost_W: Counts = field(default_factory=lambda: np.empty(0, np.int64))

    @classmethod
    def of(
        cls,
        spec: RankingSpec,
        wanted: Graph,
        known: Graph,
        taken: Graph | None = None,
        lost_W: Counts | None = None,
    ) -> "Rankings":
        """Lists that are judged by what users took, on graphs of the same tables.

        Args:
            spec: cuts and protocol.
            wanted: what each user takes.
            known: what each user has taken before.
            taken: what is never drawn as a user's sampled candidate; by default what is wanted and known.
            lost_W: the user of each event that is wanted, but whose item training has not known.

        Raises:
            LogError: under the protocol of sampled candidates a user has several held-out items.
        """
        relevant, before = lists_of(wanted), lists_of(known)
        candidate_I = np.ones(wanted.items, bool)
        candidate_I[:FIRST] = False
        drawn = None
        if spec.sampled is not None:
            never = before.joined(relevant) if taken is None else lists_of(taken)
            drawn = _sampled(relevant, never, candidate_I, spec)
        lost_W = np.empty(0, np.int64) if lost_W is None or spec.sampled is None else lost_W
        return cls(spec, relevant, before, candidate_I, drawn, lost_W)

    def judge(self, vectors: Vectors, at: Sequence[int] = ()) -> TopK:
        """How good a member's lists are, at the cuts of the job and others."""
        cuts = [*self.spec.at, *at]
        if self.sampled is not None:
            return sampled_ranking(vectors.pair_scores, *self.sampled, at=cuts).with_nothing_for(self.lost_W)
        return full_ranking(vectors.scores, self.relevant, self.known, candidate_I=self.candidate_I, at=cuts)


def events_of(log: EncodedLog, graph: GraphSpec, splits: tuple[str, ...]) -> Graph:
    """The edges of some splits, whatever their degrees."""
    return build_graph(log, graph.user, graph.item, where=graph.where, before=None, splits=splits)


def lost_of(log: EncodedLog, graph: GraphSpec, split: str) -> Counts:
    """The users of the events of a split whose items training has not known, one an event."""
    return lost_events(log, graph.user, graph.item, graph.where, (split,)).numpy()


def lists_of(graph: Graph) -> Lists:
    """The items of each user."""
    return Lists(graph.positives.offsets.numpy(), graph.positives.item_E.numpy())


def _sampled(relevant: Lists, taken: Lists, candidate_I: Bools, spec: RankingSpec) -> tuple[Counts, Counts, Counts]:
    """Users, their held-out items, and the others of each."""
    assert spec.sampled is not None
    user_V = np.flatnonzero(relevant.count())
    if int(relevant.count().max(initial=0)) > 1:
        raise LogError(
            "ranking.sampled: a user has several held-out items; hold one out of each, or rank all items (no `sampled`)"
        )
    others = draw_candidates(user_V, taken, candidate_I, spec.sampled.others, draws=spec.sampled.draws)
    return user_V, relevant.item_E, others
