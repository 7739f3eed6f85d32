"""What a job says of users and items: which events connect them, what is known of each, and how rankings are judged."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from recdistill.spec.features import FeatureSpec
from recdistill.spec.strict import OneOrMany, Strict, nearest, refusal

RANKING_METRICS = ("recall", "ndcg", "hr", "mrr")
SIDES = ("user", "item")
MOST = 2**16  # candidates of one kind
METRIC_AT = re.compile(rf"({'|'.join(RANKING_METRICS)})@([1-9][0-9]*)\Z")


class GraphSpec(Strict):
    """Users and items, and the events of the training rows that connect them.

    Attributes:
        user, item: the columns whose values are the users and the items, of type ``id`` or ``categorical``.
        user_columns, item_columns: further serving columns that describe them. Of each user and item the values of its
            last training row are known when lists of items are made.
        where: which events are edges: the value, or one of several, of a label, a role or a column with a vocabulary.
        before: only events before this time.
        min_degree: the least number of items of a user, and of users of an item.
        permuted: a seed by which the ends of all edges are permuted: a control that keeps nothing but popularity.
    """

    user: str
    item: str
    user_columns: OneOrMany = []
    item_columns: OneOrMany = []
    where: dict[str, Any] = {}
    before: Any = None
    min_degree: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (1, 1)
    permuted: int | None = None

    @property
    def sides(self) -> dict[str, list[str]]:
        """The columns of each side, that of its ids first."""
        return {"user": [self.user, *self.user_columns], "item": [self.item, *self.item_columns]}

    def problems_with(self, spec: FeatureSpec) -> list[str]:
        """What is wrong between the graph and the feature spec, one sentence each."""
        found = []
        for side, columns in self.sides.items():
            for name in columns:
                if name not in spec.serving:
                    hint = nearest(name, spec.serving)
                    found.append(f"graph.{side}_columns: {name!r} is no serving column of the spec; {hint}")
            if columns[0] in spec.serving and spec.serving[columns[0]].type not in ("id", "categorical"):
                kind = spec.serving[columns[0]].type
                found.append(f"graph.{side}: {columns[0]!r} is of type {kind}; name a column of type id or categorical")
        if both := sorted({*self.sides["user"]} & {*self.sides["item"]}):
            found.append(f"graph: {both} describe users and items at once; let each column describe one of them")
        return found


class Ranked(Strict):
    """Candidates from the top of a member's ranking, more often the higher they stand.

    Attributes:
        by: the member, which no update of the phase moves.
        top: how many places of its ranking are drawn from.
        count: how many are drawn for each anchor.
        temperature: of the draw, in places: ``exp(-place / temperature)``.
        shuffled: whether an anchor is given the ranking of another one (a control).
    """

    by: str
    top: int = Field(100, ge=1)
    count: int = Field(20, ge=1, le=MOST)
    temperature: float = Field(10.0, gt=0)
    shuffled: bool = False

    @model_validator(mode="after")
    def _enough(self) -> "Ranked":
        if self.count > self.top:
            raise refusal(f"draws {self.count} of {self.top} places; raise `top`")
        return self


class CandidatesSpec(Strict):
    """A feed of anchors, each with candidates to be ranked: for users items, or for items users.

    Attributes:
        anchor: ``user`` or ``item``.
        each: whether an epoch visits every ``edge`` of the graph, or every ``node`` that has one (with one of them).
        batch: anchors of a step; by default the job's batch.
        positives: how many more of the anchor's own are drawn as candidates.
        negatives: how many others are drawn.
        popularity: they are drawn in proportion to ``degree ** popularity``; 0 draws all alike.
        shared: whether all anchors of a step have the same negatives.
        in_batch: whether the other anchors' positives are negatives as well.
        ranked: candidates from the top of a member's ranking.
        groups: into how many groups of popularity candidates are divided, for ``popularity`` in terms.
    """

    anchor: Literal["user", "item"] = "user"
    each: Literal["edge", "node"] = "edge"
    batch: int | None = Field(None, ge=1)
    positives: int = Field(0, ge=0, le=MOST)
    negatives: int = Field(1, ge=0, le=MOST)
    popularity: float = Field(0.0, ge=0)
    shared: bool = False
    in_batch: bool = False
    ranked: Ranked | None = None
    groups: int = Field(0, ge=0)

    @property
    def width(self) -> int:
        """M, how many candidates each anchor has, without those in the batch."""
        return 1 + self.positives + self.negatives + (self.ranked.count if self.ranked else 0)

    @property
    def alone(self) -> bool:
        """Whether an anchor has no candidate that is not its own."""
        return not (self.negatives or self.in_batch or self.ranked)

    @model_validator(mode="after")
    def _some(self) -> "CandidatesSpec":
        if self.alone:
            raise refusal("an anchor has no candidate besides its own; ask for negatives, in_batch or ranked")
        return self


class Sampled(Strict):
    """One held-out item among others that the user has never taken, averaged over draws of these."""

    others: int = Field(499, ge=1)
    draws: int = Field(5, ge=1)


class RankingSpec(Strict):
    """How lists of items are judged. With it the result of the job is a metric of lists in place of the AUC of rows.

    Attributes:
        metric: the metric on which systems are compared: ``recall``, ``ndcg``, ``hr`` or ``mrr`` ``@`` a cut.
        at: the cuts at which everything is measured.
        sampled: the protocol of sampled candidates in place of the full ranking.
    """

    metric: str = "recall@20"
    at: list[Annotated[int, Field(ge=1)]] = [10, 20]
    sampled: Sampled | None = None

    @model_validator(mode="after")
    def _known(self) -> "RankingSpec":
        found = METRIC_AT.match(self.metric)
        if found is None or int(found[2]) not in self.at:
            known = ", ".join(f"{name}@{cut}" for name in RANKING_METRICS for cut in self.at)
            raise refusal(f"metric {self.metric!r} is none of {known}; ask for one of them, or add its cut to `at`")
        return self
