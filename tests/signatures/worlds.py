"""Logs for signatures: columns whose values like each other or not, and what a click's true probability is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recdistill.evaluation.fidelity import divergence
from tests.signatures.lab import SPLIT, Lab, Outcome, clicks, pairs_of_fields, splits


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


def misleading(seed: int, rows: Sequence[int]) -> World:
    """A column z beside eight numbers x, which rises with what a user wants and, more, with x0, which spoils it.

    Goods with a high x0 are looked at for long and sell rarely. A quarter of the training rows have a label.
    """
    rng = np.random.default_rng(seed)
    x_ND = rng.normal(size=(sum(rows), 8))
    w_D = 0.35 * rng.normal(size=8)
    want_N = x_ND @ w_D + 0.6 * x_ND[:, 1] * x_ND[:, 2] - 0.8 * x_ND[:, 0] + rng.normal(size=len(x_ND))
    probability_N = 1 / (1 + np.exp(3 - want_N))
    clicked_N = rng.random(len(x_ND)) < probability_N
    known_N = (splits(rows) > 0) | (np.arange(len(x_ND)) % 4 == 0)
    x = {f"x{i}": x_ND[:, i] for i in range(8)}
    columns = x | {
        "z": want_N + 2.5 * x_ND[:, 0] + 0.3 * rng.normal(size=len(x_ND)),
        "y": [int(y) if known else None for y, known in zip(clicked_N, known_N, strict=True)],
        "part": splits(rows),
    }
    post_event = {"z": "numeric", "y": "binary"}
    return World(
        columns, probability_N, {"split": SPLIT, "serving": dict.fromkeys(x, "numeric"), "post_event": post_event}
    )


def telling(seed: int, rows: Sequence[int], d: int, kappas: Sequence[float], *, unlabelled: int = 0) -> World:
    """Columns z0, z1 ... beside numbers x: both tell what a user wants, and z more and more of the luck besides.

    A click is where want and luck, which is logistic, are above 0 together.

    Args:
        seed: of everything that is drawn.
        rows: of train, valid and test.
        d: how many numbers x there are.
        kappas: how much of the luck is in each of the z.
        unlabelled: how many of the training rows, the last ones, have no label.
    """
    rng = np.random.default_rng(seed)
    x_ND = rng.normal(size=(sum(rows), d))
    want_N = x_ND @ (1.5 * rng.normal(size=d) / d**0.5)
    luck_N, noise_N = rng.logistic(size=len(x_ND)), 0.3 * rng.normal(size=len(x_ND))
    known_N = (np.arange(len(x_ND)) < rows[0] - unlabelled) | (splits(rows) > 0)
    x = {f"x{i}": x_ND[:, i] for i in range(d)}
    z = {f"z{j}": want_N + kappa * luck_N + noise_N for j, kappa in enumerate(kappas)}
    y_N = [int(y) if known else None for y, known in zip(want_N + luck_N > 0, known_N, strict=True)]
    spec = {
        "split": SPLIT,
        "serving": dict.fromkeys(x, "numeric"),
        "post_event": {"y": "binary"} | dict.fromkeys(z, "numeric"),
    }
    return World({**x, **z, "y": y_N, "part": splits(rows)}, 1 / (1 + np.exp(-want_N)), spec)


def apart(found: Outcome, student: str, *teachers: str) -> float:
    """How far a member's answers on validation rows are from its target, the mean of some members' logits."""
    return divergence(found.logits(student, "valid"), np.mean([found.logits(name, "valid") for name in teachers], 0))
