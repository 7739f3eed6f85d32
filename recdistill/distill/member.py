"""Members and phases as the engine sees them: names resolved, columns listed, nothing left to look up."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recdistill.distill.term import Term
from recdistill.nets.catalog import Net
from recdistill.spec.job import Sharing, WarmStart
from recdistill.spec.train import DenseOptimizer, StopRule


@dataclass(frozen=True)
class Member:
    """One net of a job.

    Attributes:
        name: its name in the job.
        net: its architecture.
        serving: the serving columns that it reads.
        privileged: the post-event columns that it reads; always empty for a member that serves.
        serve: whether it is the student that is exported.
        dim: width of its embeddings,
        dims: of some columns another width.
        pool: how each sequence becomes one vector; by default by its mean.
        dropout: share of its input vector dropped while training.
        trunk: widths of its first layers, which others may share.
        share: what it takes from other members.
        dense: its optimizer, where it differs from the job's.
        warm_start: where its parameters come from.
    """

    name: str
    net: Net
    serving: tuple[str, ...]
    privileged: tuple[str, ...] = ()
    serve: bool = False
    dim: int = 16
    dims: Mapping[str, int] = field(default_factory=dict)
    pool: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    dropout: float = 0.0
    trunk: tuple[int, ...] = ()
    share: Sharing = field(default_factory=Sharing)
    dense: DenseOptimizer | None = None
    warm_start: WarmStart | None = None


@dataclass(frozen=True)
class Phase:
    """A stretch of training.

    Attributes:
        terms: what should agree.
        stop: when it ends early and which checkpoint it keeps.
        epochs: its length in passes over the training rows, or
        steps: its length in steps.
    """

    terms: tuple[Term, ...]
    stop: StopRule
    epochs: int | None = None
    steps: int | None = None

    @property
    def trained(self) -> frozenset[str]:
        """The members that some term teaches; all others are frozen."""
        return frozenset().union(*(term.taught for term in self.terms))

    @property
    def members(self) -> frozenset[str]:
        """The members that take part."""
        return frozenset().union(*(term.members for term in self.terms))
