"""Members and phases as the engine sees them: names resolved, columns listed, nothing left to look up."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recdistill.distill.schedule import Metric, Schedule
from recdistill.distill.signal import Remembering, Signal
from recdistill.distill.term import Term
from recdistill.edits.towers import Edit
from recdistill.nets.catalog import Net
from recdistill.spec.members import Best, Distortion, Ema, FromRun, Previous, Recorded, Remote, Sharing, Snapshot
from recdistill.spec.train import DenseOptimizer, StopRule, TableOptimizer

RECORDED = "recorded"  # in place of a net: of the member only its scores are left
Following = Ema | Best | Snapshot | Previous | Remote


@dataclass(frozen=True)
class Same:
    """A second name of another member: its very parameters, seen through another distortion or input."""

    of: str


Origin = FromRun | Following | Same | Recorded | None


@dataclass(frozen=True)
class Member:
    """One member of a job.

    Attributes:
        name: its name in the job.
        net: its architecture.
        serving: the serving columns that it reads.
        privileged: the post-event columns that it reads; always empty for a member that serves.
        serve: whether it is the student that is exported.
        judged: whether it is a student, served or compared; stop rules go by these.
        labels: which of the job's labels it predicts, by their numbers.
        origin: where its parameters come from; None if it is trained.
        inputs: signals that it reads beside its columns.
        embed: a signal in place of its looked-up vector in training steps.
        outputs: how many values it answers, if not a logit for each of its labels; it is then not scored.
        distort: the distorted view of its columns.
        fold: (k, n) if it may not learn from the rows of the fold k of n.
        dim: width of its embeddings,
        dims: other widths for some columns.
        pool: how each sequence becomes one vector; by default by its mean.
        dropout: share of its input vector dropped while training.
        trunk: widths of its first layers, its own or borrowed.
        share: what it takes from other members.
        init: scale of its initial dense parameters.
        dense, tables: its optimizers, where they differ from the job's.
        warm_start: where its parameters come from, though it is trained.
        edited: the member whose net it is made from, and the edits.
        implied: the words of the signal that it stands behind, if it is no member of the job.
    """

    name: str
    net: Net
    serving: tuple[str, ...]
    privileged: tuple[str, ...] = ()
    serve: bool = False
    judged: bool = False
    labels: tuple[int, ...] = (0,)
    origin: Origin = None
    inputs: tuple[Signal, ...] = ()
    embed: Signal | None = None
    outputs: int | None = None
    distort: Distortion | None = None
    fold: tuple[int, int] | None = None
    dim: int = 16
    dims: Mapping[str, int] = field(default_factory=dict)
    pool: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    dropout: float = 0.0
    trunk: tuple[int, ...] = ()
    share: Sharing = field(default_factory=Sharing)
    init: float = 1.0
    dense: DenseOptimizer | None = None
    tables: TableOptimizer | None = None
    warm_start: FromRun | None = None
    edited: tuple[str, tuple[Edit, ...]] | None = None
    implied: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that it reads."""
        return (*self.serving, *self.privileged)

    @property
    def signals(self) -> tuple[Signal, ...]:
        """Everything that it reads of other members."""
        return self.inputs if self.embed is None else (*self.inputs, self.embed)

    @property
    def follows(self) -> str | None:
        """The member whose parameters it copies from time to time."""
        return self.origin.of if isinstance(self.origin, Following) else None

    @property
    def same(self) -> str | None:
        """The member of which it is a second name."""
        return self.origin.of if isinstance(self.origin, Same) else None

    @property
    def trainable(self) -> bool:
        """Whether terms may move its parameters."""
        return (self.origin is None and self.net.learns) or isinstance(self.origin, Same)

    @property
    def width(self) -> int:
        """How many values it answers for a row."""
        return len(self.labels) if self.outputs is None else self.outputs

    @property
    def scored(self) -> bool:
        """Whether its answers are scores of labels."""
        return self.outputs is None and not self.implied


def home_of(column: str, member: Member, members: Mapping[str, Member]) -> str:
    """The member among whose tables a member's column is looked up: the one that it is shared with, if that sees it."""
    owner = member.share.owner_of(column)
    return owner if owner is not None and column in members[owner].columns else member.name


@dataclass(frozen=True)
class Part:
    """Something that moves: a whole member, its ``tables``, or a module of its net by its path."""

    member: str
    path: str = ""


@dataclass(frozen=True)
class Update:
    """One move within a step.

    Attributes:
        terms: what should agree.
        parts: what moves.
        members: everyone whose answers are needed.
        every: run on every ``every``-th step.
        feed: the rows.
    """

    terms: tuple[Term, ...]
    parts: tuple[Part, ...]
    members: frozenset[str]
    every: int = 1
    feed: str = "log"

    @property
    def trained(self) -> frozenset[str]:
        """The members of which some part moves."""
        return frozenset(part.member for part in self.parts)

    def owns_tables(self, member: str) -> bool:
        """Whether the tables of a member move."""
        return any(part.member == member and part.path in ("", "tables") for part in self.parts)


@dataclass(frozen=True)
class Phase:
    """A stretch of training.

    Attributes:
        updates: the moves within each step.
        stop: when it ends early and which checkpoint it keeps.
        epochs: its length in passes over the rows of its first feed, or
        steps: its length in steps.
        lr: factors of all learning rates.
        restart: members that begin it with fresh parameters.
        carry: members that begin it with the parameters of others, (to, from).
    """

    updates: tuple[Update, ...]
    stop: StopRule
    epochs: int | None = None
    steps: int | None = None
    lr: tuple[Schedule, ...] = ()
    restart: tuple[str, ...] = ()
    carry: tuple[tuple[str, str], ...] = ()

    @property
    def terms(self) -> tuple[Term, ...]:
        """The terms of all updates."""
        return tuple(term for update in self.updates for term in update.terms)

    @property
    def trained(self) -> frozenset[str]:
        """The members that some update moves; all others are frozen."""
        return frozenset().union(*(update.trained for update in self.updates))

    @property
    def members(self) -> frozenset[str]:
        """The members that take part."""
        return frozenset().union(*(update.members for update in self.updates))

    def called(self, update: int, words: str) -> str:
        """The name of a term of an update in logs: its words, numbered where an earlier update has the same term."""
        before = sum(term.words == words for earlier in self.updates[:update] for term in earlier.terms)
        return words if before == 0 else f"{words} [{before + 1}]"

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The validation metrics that some weight depends on."""
        rates = tuple(metric for schedule in self.lr for metric in schedule.metrics)
        return (*rates, *(metric for term in self.terms for metric in term.metrics))

    @property
    def memories(self) -> dict[str, Remembering]:
        """What its terms remember of earlier steps, by their words."""
        return {memory.key: memory for term in self.terms for memory in term.memories}
