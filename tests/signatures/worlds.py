"""Logs for signatures: columns whose values like each other or not, and what a click's true probability is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recdistill.evaluation.fidelity import divergence
from tests.signatures.lab import SPLIT, Lab, Outcome, clicks, pairs_of_fields


@dataclass(frozen=True)
class World:
    """Rows of a log, their true click probability, and the spec that describes them."""

    columns: dict[str, Any]
    probability_N: NDArray[np.float64]
    spec: dict[str, Any]

    def with_training_rows_for_validation(self) -> "World":
        """The same, with the first training rows once more in place of the validation rows."""
        valid = np.flatnonzero(self.columns["part"] == 1)
        columns = {name: np.array(column) for name, column in self.columns.items()}
        for name in columns.keys() - {"part"}:
            columns[name][valid] = columns[name][: len(valid)]
        return replace(self, columns=columns)

    def lab(self, folder: Path, job: str, overrides: Mapping[str, Any]) -> Lab:
        return Lab(folder, job, self.columns, self.spec, {"label": "y", **overrides})


def fields(seed: int, rows: Sequence[int], *, labelled: float = 1.0) -> World:
    """Six columns of twenty values, which like each other or not.

    Args:
        seed: of everything that is drawn.
        rows: of train, valid and test.
        labelled: share of the training rows whose label is known.
    """
    values, logit_N = pairs_of_fields(seed, rows)
    known_N = (values["part"] > 0) | (np.random.default_rng([seed, 2]).random(len(logit_N)) < labelled)
    y_N = [int(y) if known else None for y, known in zip(clicks(logit_N, seed), known_N, strict=True)]
    spec = {
        "split": SPLIT,
        "serving": {name: "categorical" for name in values if name != "part"},
        "post_event": {"y": "binary"},
    }
    return World({**values, "y": y_N}, 1 / (1 + np.exp(-logit_N)), spec)


def apart(found: Outcome, student: str, *teachers: str) -> float:
    """How far a member's answers on validation rows are from its target, the mean of some members' logits."""
    return divergence(found.logits(student, "valid"), np.mean([found.logits(name, "valid") for name in teachers], 0))
