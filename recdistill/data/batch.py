"""Batches: the rows of one step, with what may serve and what may only teach in separate objects.

    Batch
      row_id_B        identity of each row
      serving: View   what exists when a request is answered      -> every member
      privileged: View   what is known only after the event       -> teachers; absent if nothing is privileged
      labels          raw labels by name, NaN where not known (yet)
      weight_B        row weights
      group_B         hash of each row's group; absent unless a term compares the rows of a list
      scenario_B      hash of each row's scenario; absent unless a term looks at it
      candidates      absent unless rows are users and items to be ranked: the first A rows are anchors, and behind
                      them stand the rows of all their candidates, each once and without weight

    View (F id columns, N float columns, and bags: jagged lists)
      ids_FB     [[u1 u2 u3]      one embedding row per column and row, one line per column
                  [i1 i2 i3]]
      floats_BN  [[.1] [.7] [.2]]
      bags       tags: values_L [t1 t2 | t3 | t4 t5], lengths_B [2 1 2]

Shapes: B rows, F id columns, N float columns, L list elements over all rows, A anchors, M candidates of each.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from recdistill.errors import ShapeError, VisibilityError

Audience = Literal["serving", "privileged"]


@dataclass(frozen=True)
class Jagged:
    """Lists of different lengths: the values of all rows one after the other, int64 (L,), and lengths, int64 (B,).

    Weighted lists have a weight for each value, float32 (L,); sequences may have a row of time gaps, int64 (L,).
    """

    values_L: Tensor
    lengths_B: Tensor
    weights_L: Tensor | None = None
    gaps_L: Tensor | None = None


@dataclass(frozen=True)
class View:
    """Encoded columns of B rows that one audience may see."""

    audience: Audience
    ids_FB: Tensor
    id_names: tuple[str, ...]
    floats_BN: Tensor
    float_names: tuple[str, ...]
    bags: dict[str, Jagged] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """All columns of the view."""
        return (*self.id_names, *self.float_names, *self.bags)

    @property
    def sizes(self) -> set[int]:
        """Rows of each of its parts; one number, if the parts belong together."""
        return {self.ids_FB.shape[1], len(self.floats_BN), *(len(bag.lengths_B) for bag in self.bags.values())}

    def ids(self, names: tuple[str, ...]) -> Tensor:
        """Embedding rows of some id columns, (len(names), B); no copy if they are all the view has.

        Raises:
            VisibilityError: the view has no such column.
        """
        if names == self.id_names:
            return self.ids_FB
        return self.ids_FB[[self._place(name, self.id_names) for name in names]]

    def floats(self, names: tuple[str, ...]) -> Tensor:
        """Values of some float columns, (B, len(names)); no copy if they are all the view has.

        Raises:
            VisibilityError: the view has no such column.
        """
        if names == self.float_names:
            return self.floats_BN
        return self.floats_BN[:, [self._place(name, self.float_names) for name in names]]

    def bag(self, name: str) -> Jagged:
        """One list column.

        Raises:
            VisibilityError: the view has no such column.
        """
        self._place(name, tuple(self.bags))
        return self.bags[name]

    def _place(self, name: str, names: tuple[str, ...]) -> int:
        if name not in names:
            raise VisibilityError(
                f"batch: column {name!r} was asked of the {self.audience} view, which holds {list(self.names)}; a "
                "member sees only the views that it was given, so take the column out of its view or let it be no "
                "serving member"
            )
        return names.index(name)


@dataclass(frozen=True)
class Candidates:
    """What is to be ranked for each anchor.

    Attributes:
        anchor: which side the anchors are, ``user`` or ``item``.
        parts: the rows of the candidates, part by part: one set per anchor, int64 (A, n), or one for all, (n,)
        marks: what is known of each candidate, float32 (A, M), by name: ``own`` is 1 for the anchor's own, 0 for
            negatives, NaN for others; ``taken`` is 1 for all that the anchor is known to have taken, 0 for others;
            ``log_q`` is the logarithm of how often it is expected among the draws; ``popularity`` its group.
    """

    anchor: str
    parts: tuple[Tensor, ...]
    marks: dict[str, Tensor]

    @property
    def anchors(self) -> int:
        """A."""
        return len(self.marks["own"])


@dataclass(frozen=True)
class Batch:
    """The rows of one step."""

    row_id_B: Tensor
    serving: View
    labels: dict[str, Tensor]
    weight_B: Tensor
    privileged: View | None = None
    group_B: Tensor | None = None
    scenario_B: Tensor | None = None
    candidates: Candidates | None = None

    def __post_init__(self) -> None:
        if self.serving.audience != "serving" or (self.privileged and self.privileged.audience != "privileged"):
            raise VisibilityError(
                "batch: the serving and the privileged view are swapped; build them from the spec's roles"
            )
        both = set(self.serving.names) & set(self.privileged.names if self.privileged else ())
        if both:
            raise VisibilityError(f"batch: {sorted(both)} stand in the serving and in the privileged view; keep one")
        views = [self.serving] if self.privileged is None else [self.serving, self.privileged]
        sizes = {len(self.row_id_B), len(self.weight_B), *map(len, self.labels.values())}
        sizes |= {len(hashes) for hashes in (self.group_B, self.scenario_B) if hashes is not None}
        sizes.update(size for view in views for size in view.sizes)
        if len(sizes) != 1:
            raise ShapeError(f"batch: parts of {sorted(sizes)} rows; all parts of a batch hold the same rows")

    def __len__(self) -> int:
        return len(self.row_id_B)

    def groups(self) -> Tensor:
        """The group of each row, int64 (B,).

        Raises:
            ShapeError: the batch was read without groups.
        """
        if self.group_B is None:
            raise ShapeError("batch: was read without groups, which a loss over lists needs; ask the reader for them")
        return self.group_B

    def scenarios(self) -> Tensor:
        """The hash of the scenario of each row, int64 (B,).

        Raises:
            ShapeError: the batch was read without scenarios.
        """
        if self.scenario_B is None:
            raise ShapeError("batch: was read without scenarios, which a term looks at; ask the reader for them")
        return self.scenario_B

    def ranked(self) -> Candidates:
        """The anchors and their candidates.

        Raises:
            ShapeError: the batch has none.
        """
        if self.candidates is None:
            raise ShapeError(
                "batch: holds rows of a log, which have no candidates; give the update a feed with `candidates`"
            )
        return self.candidates


def concat(parts: list[Batch]) -> Batch:
    """The rows of several batches as one."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    privileged = [p.privileged for p in parts if p.privileged is not None]
    return Batch(
        torch.cat([p.row_id_B for p in parts]),
        _concat_views([p.serving for p in parts]),
        {name: torch.cat([p.labels[name] for p in parts]) for name in first.labels},
        torch.cat([p.weight_B for p in parts]),
        _concat_views(privileged) if privileged else None,
        _concat_hashes([p.group_B for p in parts]),
        _concat_hashes([p.scenario_B for p in parts]),
    )


def _concat_hashes(parts: list[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None


def _concat_views(views: list[View]) -> View:
    first = views[0]
    bags = {name: _concat_jagged([v.bags[name] for v in views]) for name in first.bags}
    ids_FB, floats_BN = torch.cat([v.ids_FB.t() for v in views]).t(), torch.cat([v.floats_BN for v in views])
    return View(first.audience, ids_FB, first.id_names, floats_BN, first.float_names, bags)


def _concat_jagged(bags: list[Jagged]) -> Jagged:
    weights = [bag.weights_L for bag in bags if bag.weights_L is not None]
    gaps = [bag.gaps_L for bag in bags if bag.gaps_L is not None]
    values_L, lengths_B = torch.cat([bag.values_L for bag in bags]), torch.cat([bag.lengths_B for bag in bags])
    return Jagged(values_L, lengths_B, torch.cat(weights) if weights else None, torch.cat(gaps) if gaps else None)
