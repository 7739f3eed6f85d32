"""Score files: what a member answered for every row of a split, keyed by row id."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recdistill.errors import RunError

AS_SERVED = "as_served"  # folder of what members that are judged on distorted rows answer to the rows as they are


@dataclass(frozen=True)
class Scored:
    """The rows of one split whose label is known, as one member scored them.

    Attributes:
        row_id_N: identity of each row.
        label_N: 0 or 1.
        logit_N: logits.
        group_N: a number for each group, or None without groups; rows of no group are alone in theirs.
        scenario_N: the scenario of each row as a text, empty where it has none, or None without scenarios.
        weight_N: row weights, or None where every row weighs the same.
    """

    row_id_N: NDArray[np.int64]
    label_N: NDArray[np.float32]
    logit_N: NDArray[np.float32]
    group_N: NDArray[np.int64] | None = None
    scenario_N: NDArray[np.str_] | None = None
    weight_N: NDArray[np.float32] | None = None

    def only(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> "Scored":
        """Some of the rows, by a mask or by their places."""
        further = {name: value for name, value in vars(self).items() if value is not None}
        return replace(self, **{name: value[rows] for name, value in further.items()})

    @property
    def score_N(self) -> NDArray[np.float64]:
        """Probabilities."""
        return sigmoid(self.logit_N)


def sigmoid(logit: NDArray[np.float32]) -> NDArray[np.float64]:
    """Probabilities of logits, in float64."""
    with np.errstate(over="ignore"):  # exp overflows to infinity, whose inverse is the right 0
        return 1 / (1 + np.exp(-logit.astype(np.float64)))


def write_scores(
    path: Path,
    *,
    row_id_N: NDArray[np.int64],
    labels: Mapping[str, NDArray[np.float32]],
    logits_NK: NDArray[np.float32],
    roles: pl.DataFrame | None = None,
    main: str | None = None,
) -> None:
    """Write one member's scores: row_id, label, logit, score; further labels under ``label.NAME`` and so on; roles.

    Args:
        path: the file.
        row_id_N: identity of each row.
        labels: the labels that the member predicts.
        logits_NK: its logits, one column per label.
        roles: the raw roles of each row.
        main: the label without a suffix; by default the first one.
    """
    columns: dict[str, NDArray[np.generic]] = {"row_id": row_id_N}
    for k, (name, label_N) in enumerate(labels.items()):
        suffix = "" if name == (main or next(iter(labels))) else f".{name}"
        logit_N = logits_NK[:, k]
        columns |= {
            f"label{suffix}": label_N,
            f"logit{suffix}": logit_N,
            f"score{suffix}": sigmoid(logit_N).astype(np.float32),
        }
    frame = pl.DataFrame(columns)
    if roles is not None:
        frame = frame.hstack(roles)
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(path, statistics=False)


def read_scores(path: Path, label: str | None = None) -> Scored:
    """The labelled rows of a score file, for its main label or for another one.

    Raises:
        RunError: the file is missing or is no score file.
    """
    suffix = "" if label is None else f".{label}"
    try:
        frame = pl.read_parquet(path)
        frame = frame.with_columns(pl.col(f"label{suffix}").fill_nan(None)).drop_nulls(f"label{suffix}")
        logit_N, label_N = (frame[f"{name}{suffix}"].to_numpy() for name in ("logit", "label"))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise RunError(f"{path}: is no readable score file ({error}); continue the run with --resume") from None
    return scored(frame["row_id"].to_numpy(), label_N, logit_N, frame)


def scored(
    row_id_N: NDArray[np.int64], label_N: NDArray[np.float32], logit_N: NDArray[np.float32], roles: pl.DataFrame
) -> Scored:
    """The rows, all of which have a label, with what a frame holds of ``group``, ``scenario`` and ``weight``."""
    group_N = scenario_N = weight_N = None
    if "group" in roles.columns:
        alone = -1 - pl.int_range(pl.len(), dtype=pl.Int64)
        code = pl.when(pl.col("group").is_null()).then(alone).otherwise(pl.col("group").rank("dense").cast(pl.Int64))
        group_N = roles.select(code).to_series().to_numpy()
    if "scenario" in roles.columns:
        scenario_N = roles["scenario"].cast(pl.String).fill_null("").to_numpy().astype(np.str_)
    if "weight" in roles.columns:
        weight_N = roles["weight"].to_numpy()
    return Scored(row_id_N, label_N, logit_N, group_N, scenario_N, weight_N)


def same_rows(first: Scored, others: Sequence[Scored]) -> bool:
    """Whether all hold the same rows in the same order."""
    return all(np.array_equal(first.row_id_N, other.row_id_N) for other in others)


def read_logits(path: Path) -> NDArray[np.float32]:
    """The logits of all rows of a score file, labelled or not, (N, K).

    Raises:
        RunError: the file is missing or is no score file.
    """
    try:
        frame = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise RunError(f"{path}: is no readable score file ({error}); continue the run with --resume") from None
    return frame.select(pl.col("^logit(\\..*)?$")).to_numpy()


def served_logits(folder: Path, file: str) -> NDArray[np.float32]:
    """What a member answers to rows as they are, (N, K): its scores, unless it is judged on distorted rows.

    Args:
        folder: the scores of a training.
        file: member and split, ``student.test``.

    Raises:
        RunError: the file is missing or is no score file.
    """
    apart = folder / AS_SERVED / f"{file}.parquet"
    return read_logits(apart if apart.exists() else folder / f"{file}.parquet")
