"""How many rows of a split are labelled, and how many of these are positive."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from recdistill.data.encoded import EncodedLog


@dataclass(frozen=True)
class Count:
    """One label in one split.

    Attributes:
        rows: of the split.
        known: those whose label is known.
        positive: those whose label is 1.
    """

    rows: int
    known: int
    positive: int

    @property
    def both(self) -> bool:
        """Whether some rows have the label 1 and others 0."""
        return 0 < self.positive < self.known

    def __str__(self) -> str:
        share = f", {self.positive / self.known:.2%} of them 1" if self.known else ""
        return f"{self.known:,} of {self.rows:,} labelled{share}"


def count_labels(log: EncodedLog, split: str, labels: Sequence[str]) -> dict[str, Count]:
    """Each label in one split of a log."""
    known = log.labels(split).select(pl.col(labels).fill_nan(None))
    counts = known.select(
        pl.len().alias("/rows"),
        *(pl.col(label).count().alias(f"{label}/known") for label in labels),
        *((pl.col(label) == 1).sum().alias(f"{label}/positive") for label in labels),
    )
    found = counts.collect().row(0, named=True)
    return {n: Count(found["/rows"], found[f"{n}/known"], found[f"{n}/positive"]) for n in labels}
