"""Logs for signatures: columns whose values like each other or not, and what a click's true probability is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.signatures.lab import SPLIT, Lab, Outcome, splits

FIELDS, VALUES, RANK = 6, 20, 4


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
    """Six columns of twenty values: a linear logit and pairs that like each other; one row in three is clicked.

    Args:
        seed: of everything that is drawn.
        rows: of train, valid and test.
        labelled: share of the training rows whose label is known.
    """
    rng = np.random.default_rng(seed)
    value_NF = rng.integers(VALUES, size=(sum(rows), FIELDS))
    single_FV, liking_FVR = 0.35 * rng.normal(size=(FIELDS, VALUES)), 0.3 * rng.normal(size=(FIELDS, VALUES, RANK))
    field_F = np.arange(FIELDS)
    chosen_NFR = liking_FVR[field_F, value_NF]
    pairs_N = (np.square(chosen_NFR.sum(1)) - np.square(chosen_NFR).sum(1)).sum(1) / 2
    probability_N = 1 / (1 + np.exp(0.95 - single_FV[field_F, value_NF].sum(1) - 1.2 * pairs_N))
    part_N = splits(rows)
    known_N = (part_N > 0) | (rng.random(len(part_N)) < labelled)
    y_N = rng.random(len(part_N)) < probability_N
    columns: dict[str, Any] = {f"c{k}": value_NF[:, k] for k in field_F} | {
        "y": [int(y) if known else None for y, known in zip(y_N, known_N, strict=True)],
        "part": part_N,
    }
    spec = {
        "split": SPLIT,
        "serving": {f"c{k}": "categorical" for k in field_F},
        "post_event": {"y": "binary"},
    }
    return World(columns, probability_N, spec)


def apart(found: Outcome, student: str, *teachers: str) -> float:
    """How far a member's answers on validation rows are from its target, the mean of some members' logits.

    The mean divergence of Bernoulli variables, of the target's from the member's.
    """
    target_N = np.mean([found.logits(name, "valid") for name in teachers], 0)
    p, q = (np.clip(1 / (1 + np.exp(-z)), 1e-7, 1 - 1e-7) for z in (target_N, found.logits(student, "valid")))
    return float((p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean())
