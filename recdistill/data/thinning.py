"""Rows and labels of a log that are set aside, by hashes of row ids, so that nothing depends on their order."""

# Shapes: N rows.

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recdistill.data.transforms.hashing import bucket_of, hash_texts, splitmix64


def drawn(row_id_N: NDArray[np.int64], purpose: str, seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each row, fixed by row id, purpose and seed."""
    salt = splitmix64(hash_texts(pl.Series([purpose])) ^ np.int64(seed))[0]
    return bucket_of(splitmix64(row_id_N ^ salt), 2**53) / 2.0**53


@dataclass(frozen=True)
class Shard:
    """One of several parts of a log that have no row in common, the same for every seed.

    Attributes:
        number: which one, from 0.
        of: how many there are.
        by_group: whether the rows of a group stay together.
    """

    number: int
    of: int
    by_group: bool = False

    def holds(self, key_N: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether rows, or groups, belong to it, by their ids."""
        place_N: NDArray[np.int64] = (drawn(key_N, "shard", 0) * self.of).astype(np.int64)
        found: NDArray[np.bool_] = place_N == self.number
        return found


@dataclass(frozen=True, eq=False)
class Sample:
    """A few rows of a log, by their ids."""

    row_id_M: NDArray[np.int64]
    by_group: bool = False

    @classmethod
    def of(cls, row_id_N: NDArray[np.int64], count: int) -> "Sample":
        """A sample of ``count`` rows, the same for every seed; smaller samples are subsets of larger ones."""
        return cls(row_id_N[np.argsort(drawn(row_id_N, "sample", 0), kind="stable")[:count]])

    def holds(self, key_N: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether rows belong to it."""
        return np.isin(key_N, self.row_id_M)


@dataclass(frozen=True)
class Thinning:
    """What is set aside, drawn by row id and seed: for scarce labels, negative downsampling, a shard or a sample."""

    seed: int = 0
    keep_labels: float = 1.0
    negative_keep_rate: float = 1.0
    shard: Shard | Sample | None = None

    @property
    def of_rows(self) -> bool:
        """Whether whole rows are set aside."""
        return self.negative_keep_rate < 1 or self.shard is not None

    @property
    def by_group(self) -> bool:
        """Whether a row's group decides."""
        return self.shard is not None and self.shard.by_group

    def kept(
        self, row_id_N: NDArray[np.int64], label_N: NDArray[np.float32], group_N: NDArray[np.int64] | None
    ) -> NDArray[np.int64]:
        """The places of the rows that are left.

        Args:
            row_id_N: ids of the rows.
            label_N: the main label, by which negatives are told.
            group_N: hashes of their groups, needed if those decide.
        """
        kept_N = np.ones(len(row_id_N), bool)
        if self.negative_keep_rate < 1:
            draw_N = drawn(row_id_N, "negative_keep_rate", self.seed)
            kept_N = (label_N != 0) | (draw_N < self.negative_keep_rate)
        if self.shard is not None:
            kept_N &= self.shard.holds(row_id_N if group_N is None else group_N)
        return np.flatnonzero(kept_N)
