"""Every loss of the catalogue with its reference and with inputs, in each form that it takes.

Inputs are drawn in double precision: the learner first, then the targets. A row is a row of the log, or an anchor with
its candidates side by side. Losses over candidates stand here twice, as matrices and flat with ``list_B``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recdistill.losses.catalog import LIST, LOSSES
from recdistill.losses.scope import is_in_batch, scope_of
from tests.oracles import losses as oracle
from tests.oracles import ranking

N, B, M = 7, 6, 9  # rows; anchors and their candidates
LISTS = torch.tensor([0, 1, 0, 2, 1, 0, 2])
NAN = float("nan")


@dataclass(frozen=True)
class Inputs:
    """The columns of some rows, and the list of each row where the loss is told of it."""

    columns: tuple[Tensor, ...]
    list_N: Tensor | None = None

    def __len__(self) -> int:
        return len(self.columns[0])

    def at(self, rows: Any) -> "Inputs":
        """Some of the rows, in a given order."""
        return Inputs(tuple(c[rows] for c in self.columns), None if self.list_N is None else self.list_N[rows])

    def to(self, dtype: torch.dtype) -> "Inputs":
        """The same in another precision."""
        return Inputs(tuple(c.to(dtype) for c in self.columns), self.list_N)


@dataclass(frozen=True)
class Case:
    """A loss in one form.

    Attributes:
        name: of the loss in the catalogue.
        reference: from the columns as arrays (and their lists) to the values.
        draw: the inputs of a seed.
        kinds: what the learner and each target are: ``score``, ``layer``, ``label``, ``probability``, ``group``.
        options: of the loss.
    """

    name: str
    reference: Callable[..., Any]
    draw: Callable[[int], Inputs]
    kinds: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def scope(self) -> str:
        """What a value stands for: a ``row``, a ``list`` of rows, the ``batch``."""
        found = scope_of(LOSSES[self.name])
        return "row" if found == "list" and self.draw(0).list_N is None else found

    @property
    def meets(self) -> bool:
        """Whether the loss declares that it depends on which rows meet in a batch."""
        return self.scope == "batch" or is_in_batch(LOSSES[self.name])

    @property
    def ranks(self) -> bool:
        """Whether rows are anchors with candidates."""
        return self.kinds[0] == "score" and self.draw(0).columns[0].dim() == 2

    def __call__(self, inputs: Inputs, learner: Tensor | None = None) -> Tensor:
        first, *targets = inputs.columns
        lists = {} if inputs.list_N is None else {LIST: inputs.list_N}
        return LOSSES[self.name](first if learner is None else learner, *targets, **lists, **self.options)

    def expected(self, inputs: Inputs) -> Any:
        """What the reference says."""
        lists = [] if inputs.list_N is None else [inputs.list_N.numpy()]
        return self.reference(*(c.numpy() for c in inputs.columns), *lists)


def drawn(*kinds: str, listed: bool = False) -> Callable[[int], Inputs]:
    """Inputs of rows of the log."""

    def draw(seed: int) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        found = []
        for kind in kinds:
            shape = (N, 3) if kind == "layer" else (N,)
            value = torch.randn(shape, generator=generator, dtype=torch.float64) * 3
            made = {"label": (value > 0).double(), "probability": torch.sigmoid(value)}
            found.append(made.get(kind, value))
        return Inputs(tuple(found), LISTS if listed else None)

    return draw


def candidates(seed: int = 0, *, absent: float = 0.2, ties: bool = True) -> dict[str, Tensor]:
    """Scores and targets; some candidates do not exist, row 0 has no positive, row 1 no negative, row 2 nothing."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(B, M, generator=generator, dtype=torch.float64)

    label = (torch.rand(B, M, generator=generator, dtype=torch.float64) < 0.4).double()
    label[0], label[1] = 0, 1
    is_absent = torch.rand(B, M, generator=generator) < absent
    is_absent[2] = True
    student, teacher, log_q = normal() * 2, normal() * 4, normal()
    found = {
        "student": student, "teacher": teacher.round() / 2 if ties else teacher, "label": label, "log_q": log_q,
        "group": torch.randint(3, (B, M), generator=generator).double(),
    }  # fmt: skip
    for name in ("teacher", "label"):
        found[name] = found[name].masked_fill(is_absent, NAN)
    return found


def flattened(columns: tuple[Tensor, ...], seed: int) -> Inputs:
    """The candidates that exist, one a row, shuffled; those that the teacher scores alike keep their order."""
    columns = tuple(column[[0, 1, 3, 4, 5]] for column in columns)  # a list without a row cannot be numbered
    anchor_R, place_R = (~columns[1].isnan()).nonzero(as_tuple=True)
    order_R = torch.randperm(len(anchor_R), generator=torch.Generator().manual_seed(seed))
    order_R = order_R[torch.argsort(place_R[order_R], stable=True)]
    return Inputs(tuple(column[anchor_R, place_R][order_R] for column in columns), anchor_R[order_R])


def ranked(name: str, *targets: str, variant: str = "", **options: Any) -> dict[str, Case]:
    """A loss over candidates, in both of its forms."""
    reference = getattr(ranking, name)

    def columns(seed: int) -> tuple[Tensor, ...]:
        data = candidates(seed, ties=seed % 2 == 1)
        return tuple(data[column] for column in ("student", *targets))

    def of_lists(*arrays: np.ndarray) -> Any:
        *parts, lists = arrays
        return [reference(*([*p[lists == g]] for p in parts), **options) for g in range(int(lists.max()) + 1)]

    kinds = ("score", *("score" if t in ("teacher", "log_q") else t for t in targets))
    return {
        f"{name}{variant}": Case(
            name, lambda *arrays: ranking.per_anchor(reference, *arrays, **options),
            lambda seed: Inputs(columns(seed)), kinds, options,
        ),
        f"{name}{variant}, flat": Case(
            name, of_lists, lambda seed: flattened(columns(seed), seed), kinds, options
        ),
    }  # fmt: skip


def of_rows(name: str, reference: Callable[..., Any], *kinds: str, **options: Any) -> Case:
    """A loss over rows or over the batch."""
    return Case(name, reference, drawn(*kinds), kinds, options)


def of_lists(name: str, reference: Callable[..., Any], *kinds: str, **options: Any) -> Case:
    """A loss over lists of rows."""
    return Case(name, reference, drawn(*kinds, listed=True), kinds, options)


CASES = {
    "bce": of_rows("bce", oracle.bce, "score", "probability"),
    "bce, several labels": of_rows(
        "bce", lambda s, y: sum(oracle.bce(s[:, k], y[:, k]) for k in range(3)), "layer", "layer"
    ),
    "categorical": of_rows("categorical", oracle.categorical, "layer", "layer"),
    "soft": of_rows("soft", lambda s, t: oracle.soft(s, t, 3.0), "score", "score", temperature=3.0),
    "softened": of_rows(
        "softened", lambda s, t: oracle.softened(s, t, 3.0, 0.2), "score", "score", temperature=3.0, base=0.2
    ),
    "soft_list": of_lists(
        "soft_list", lambda s, t, g: oracle.soft_list(s, t, g, 3.0), "score", "score", temperature=3.0
    ),
    "score_gap": of_lists("score_gap", lambda s, g: oracle.score_gap(s, g, 2), "score", top=2),
    "l2": of_rows("l2", oracle.l2, "score", "score"),
    "l2, layers": of_rows("l2", oracle.l2, "layer", "layer"),
    "mmd": of_rows("mmd", oracle.mmd, "score", "score"),
    "mmd, layers": of_rows("mmd", oracle.mmd, "layer", "layer"),
    "pairwise": of_rows("pairwise", oracle.pairwise, "score", "label"),
    "relative_order": of_rows(
        "relative_order", lambda s, *t: oracle.relative_order(s, t, 0.3, 2), "layer", "layer", "layer", "layer",
        margin=0.3, triplets=2,
    ),
    "quantisation": of_rows("quantisation", ranking.quantisation, "layer"),
    "half_square": of_rows("half_square", ranking.half_square, "layer"),
    **ranked("bpr", "label"),
    **ranked("sampled_softmax", "label"),
    **ranked("sampled_softmax", "label", "log_q", variant=", corrected", temperature=0.7),
    **ranked("soft_sides", "teacher", "label", temperature=0.5, student_temperature=2.0),
    **ranked("rd", "teacher", variant=", by place", top=4, position=3.0),
    **ranked("rd", "teacher", top=4, position=3.0, discrepancy=0.1, items=40),
    **ranked("cd", "teacher", temperature=2.0, shift=0.5),
    **ranked("rrd", "teacher", interesting=4),
    **ranked("rrd", "teacher", variant=", all", interesting=20),
    **ranked("unkd", "teacher", "group"),
}  # fmt: skip
