"""Scores that an earlier run has written, read back by row id: a teacher of which only its answers are left.

A score file carries in its metadata whose scores they are. Scores of a teacher that has changed since, of rows that
were identified in another way, or of other rows than are asked for, are refused.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from recdistill.errors import LogError

KEY = b"recdistill"


@dataclass(frozen=True)
class Provenance:
    """Whose scores a file holds.

    Attributes:
        run: the run.
        member: the member.
        seed: the seed of the run.
        fingerprint: of the member's parameters and of all that it was made from.
        row_id: the raw columns whose values identify a row; empty if rows are only counted.
        labels: the labels that the scores are of.
        out_of_fold: whether each row was scored by a copy that has not learned from it.
    """

    run: str
    member: str
    seed: int
    fingerprint: str
    row_id: list[str]
    labels: list[str]
    out_of_fold: bool = False

    def attach(self, table: pa.Table) -> pa.Table:
        """The table with this in its metadata."""
        return table.replace_schema_metadata({**(table.schema.metadata or {}), KEY: json.dumps(asdict(self)).encode()})

    @classmethod
    def of(cls, file: Path) -> "Provenance":
        """What a score file says of itself.

        Raises:
            LogError: it says nothing, or cannot be read.
        """
        try:
            metadata: Mapping[bytes, bytes] = pq.read_schema(file).metadata or {}
            return cls(**json.loads(metadata[KEY]))
        except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
            raise LogError(
                f"{file}: does not say whose scores it holds ({error}); write it with `recdistill score RUN LOG OUT "
                "--member NAME`"
            ) from None


class RecordedScores:
    """Logits of one member for many rows, found by row id.

    Args:
        file: the score file, for messages.
        row_id_N: the rows, in any order.
        logits_NK: their logits, one column per label.

    Raises:
        LogError: a row occurs twice.
    """

    def __init__(self, file: Path, row_id_N: NDArray[np.int64], logits_NK: NDArray[np.float32]) -> None:
        order = np.argsort(row_id_N, kind="stable")
        self.file = file
        self.row_id_N = torch.from_numpy(row_id_N[order].copy())
        self.logits_NK = torch.from_numpy(logits_NK[order].copy())
        if len(row_id_N) > 1 and bool((self.row_id_N[1:] == self.row_id_N[:-1]).any()):
            raise LogError(f"{file}: scores a row twice; score a log whose rows are identified by the spec's `row_id`")

    @classmethod
    def open(cls, file: Path, labels: Sequence[str], shift_K: NDArray[np.float32] | float = 0.0) -> "RecordedScores":
        """The scores in a file for some labels.

        Args:
            file: the score file.
            labels: the labels.
            shift_K: added to the logits of each label, which are those of all rows: what turns them into those of a
                log, or a training, without some negatives.

        Raises:
            LogError: the file holds no scores of a label, or cannot be read.
        """
        known = Provenance.of(file).labels
        missing = [label for label in labels if label not in known]
        if missing:
            raise LogError(f"{file}: holds no scores of {missing}, only of {known}; score a member that predicts them")
        columns = ["logit" if known.index(label) == 0 else f"logit.{label}" for label in labels]
        try:
            frame = pl.read_parquet(file, columns=["row_id", *columns])
        except (OSError, pl.exceptions.PolarsError) as error:
            raise LogError(f"{file}: cannot be read ({str(error).splitlines()[0]}); write it again") from None
        logits_NK = frame.select(columns).to_numpy().astype(np.float32) + shift_K
        return cls(file, frame["row_id"].to_numpy(), logits_NK)

    def read(self, row_id_B: Tensor) -> Tensor:
        """The logits of some rows, (B, K).

        Raises:
            LogError: a row was not scored.
        """
        place_B = torch.searchsorted(self.row_id_N, row_id_B).clamp(max=max(len(self.row_id_N) - 1, 0))
        if len(self.row_id_N) == 0 or not torch.equal(self.row_id_N[place_B], row_id_B):
            unknown = len(row_id_B) if len(self.row_id_N) == 0 else int((self.row_id_N[place_B] != row_id_B).sum())
            raise LogError(
                f"{self.file}: holds no scores of {unknown} of {len(row_id_B)} rows that are asked for; score the "
                "whole log that the job trains on"
            )
        return self.logits_NK[place_B]


def refuse_stale(file: Path, expected: Mapping[str, Any]) -> None:
    """Raise unless a score file belongs to what is expected.

    Args:
        file: the score file.
        expected: fields of its `Provenance` and their values, for example the fingerprint of the teacher as it is now.

    Raises:
        LogError: a field differs.
    """
    found = asdict(Provenance.of(file))
    for name, value in expected.items():
        if found[name] != value:
            raise LogError(
                f"{file}: its scores are of another {name}: expected {value!r}, found {found[name]!r}; score the log "
                "again with `recdistill score`"
            )
