"""What a job says of its course: phases, the updates within a step, and the rows that they see."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from recdistill.spec.graph import CandidatesSpec
from recdistill.spec.strict import OneOrMany, Strict, refusal
from recdistill.spec.train import StopRule

LOG = "log"  # the feed of the job's own training rows


class UpdateSpec(Strict):
    """One move within a step: whom to teach, by which terms, on which rows, how often.

    Attributes:
        terms: what should agree.
        train: who moves: members, or parts of them by their path (``student.trunk``, ``student.tables``,
            ``student.net.stack.blocks.0``); by default every member that some term teaches.
        every: run on every ``every``-th step.
        feed: the rows.
    """

    terms: list[str] = Field(min_length=1)
    train: OneOrMany = []
    every: int = Field(1, ge=1)
    feed: str = LOG


class PhaseSpec(Strict):
    """A stretch of training. It moves the members that some term of it teaches, and no other.

    Attributes:
        terms, train, feed: of the only update, or
        updates: several updates in each step, one after the other.
        epochs: its length in passes over the rows of its first feed, or
        steps: in steps.
        stop: when it ends early and which checkpoint it keeps.
        lr: a factor of all learning rates, for example ``cosine(1, 0, over=0.999)`` or ``cycle(1, 0, over=0.2)``.
        repeat: how many times the phase is trained, each time anew.
        restart: members that begin each repetition with fresh parameters.
        carry: members that begin the phase (each repetition) with the parameters of others, ``{to: from}``.
    """

    terms: list[str] = []
    train: OneOrMany = []
    feed: str = LOG
    updates: list[UpdateSpec] = []
    epochs: int | None = Field(None, ge=1)
    steps: int | None = Field(None, ge=1)
    stop: StopRule | None = None
    lr: str | None = None
    repeat: int = Field(1, ge=1, le=64)
    restart: OneOrMany = []
    carry: dict[str, str] = {}

    @model_validator(mode="after")
    def _one_way(self) -> "PhaseSpec":
        if (self.epochs is None) == (self.steps is None):
            raise refusal("give either epochs or steps")
        if bool(self.terms) == bool(self.updates):
            raise refusal("give either terms or updates, at least one of them")
        if self.updates and (self.train or self.feed != LOG):
            raise refusal("has updates, each of which says whom it trains and on which feed; move `train` and `feed`")
        return self

    @property
    def moves(self) -> list[UpdateSpec]:
        """Its updates, the only one included."""
        return self.updates or [UpdateSpec(terms=self.terms, train=self.train, feed=self.feed)]

    def with_moves(self, moves: list[UpdateSpec]) -> "PhaseSpec":
        """The phase with other updates, written in the form that it has."""
        if self.updates:
            return self.model_copy(update={"updates": moves})
        return self.model_copy(update={"terms": moves[0].terms, "train": moves[0].train, "feed": moves[0].feed})


class FeedSpec(Strict):
    """Rows other than all of the job's own training rows.

    Attributes:
        log: another parquet log, read with the columns fitted on the job's own; what it lacks of the labels is unknown.
        where: raw columns and the value (or values) that a row of it must have.
        mix: a share of the batch for each of several feeds, ``{log: 3, pool: 1}``.
        noise: number of rows in an epoch, without log or columns, for members that read signals only.
        candidates: users or items of the job's ``graph``, each with candidates to be ranked.
        shard: ``[k, n]``: the k-th of n parts of the job's own training rows, which have no row in common; ``[0, 2n]``
            is a part of ``[0, n]``.
        by: what a shard is made of: single rows, or whole groups.
        sample: number of the job's own training rows to sample, the same for every seed; smaller samples are nested in
            larger ones.
    """

    log: str | None = None
    where: dict[str, Any] = {}
    mix: dict[str, Annotated[int, Field(ge=1)]] = {}
    noise: int | None = Field(None, ge=1)
    candidates: CandidatesSpec | None = None
    shard: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=2)]] | None = None
    by: Literal["row", "group"] = "row"
    sample: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one_kind(self) -> "FeedSpec":
        kinds = {
            "log": self.log is not None,
            "mix": bool(self.mix),
            "noise": self.noise is not None,
            "candidates": self.candidates is not None,
            "shard": self.shard is not None,
            "sample": self.sample is not None,
        }
        if sum(kinds.values()) != 1:
            raise refusal(f"a feed names exactly one of {', '.join(kinds)}")
        if self.shard is not None and self.shard[0] >= self.shard[1]:
            raise refusal(f"of {self.shard[1]} shards the last is {self.shard[1] - 1}")
        if self.by != "row" and self.shard is None:
            raise refusal("`by` says what a shard is made of; name the `shard`")
        if self.where and self.log is None:
            raise refusal("`where` chooses rows of a log; name the `log`")
        return self

    @property
    def of_log(self) -> bool:
        """Whether its rows are those of one log."""
        return self.log is not None or self.shard is not None or self.sample is not None
