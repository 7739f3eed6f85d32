"""Columns of type ``history``: counts and rates of past rows by keys, one float per row.

Encoding computes the number itself (`data/replay.py`) and adds it to the raw columns; what is left is a `Number`. The
artefact looks it up by the hash of the keys in what was known after the last row that was trained on, unless the caller
passes a fresher one under the column's own name.

A missing key is a key like any other: rows without a user have one history together.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recdistill.data.transforms import numeric
from recdistill.data.transforms.column import Fitted, Kind, Learned
from recdistill.data.transforms.raw import numbers_tensor
from recdistill.data.transforms.several import KeyHashes, key_hashes
from recdistill.errors import LogError
from recdistill.spec import columns as declared


@dataclass(frozen=True)
class Snapshot:
    """What was known after the last row that was trained on.

    Attributes:
        frame: ``key`` (Int64, ascending), the hash of the keys, and ``value`` (Float32).
        unseen: the value of all other keys.
    """

    frame: pl.DataFrame
    unseen: float

    def of(self, key_N: NDArray[np.int64]) -> NDArray[np.float32]:
        """The value of each key."""
        known_K, value_K = self.frame["key"].to_numpy(), self.frame["value"].to_numpy()
        if not len(known_K):
            return np.full(len(key_N), self.unseen, np.float32)
        place_N = np.minimum(np.searchsorted(known_K, key_N), len(known_K) - 1)
        return np.where(known_K[place_N] == key_N, value_K[place_N], np.float32(self.unseen))


def raw_name(name: str) -> str:
    """Raw-column name under which encoding stores the values of a history column."""
    return f"__history__/{name}"


def raw_number(name: str) -> pl.Expr:
    """The values stored under that name."""
    return pl.col(raw_name(name)).cast(pl.Float64)


def types(name: str, column: declared.History, schema: pl.Schema) -> dict[str, pl.DataType]:
    """The keys and their types.

    Raises:
        LogError: a key holds lists.
    """
    found = {source: schema[source] for source in column.keys}
    for source, dtype in found.items():
        if isinstance(dtype, pl.List | pl.Array):
            raise LogError(f"{name}: the key {source!r} holds lists; name a column with one value per row")
    return found


def fit(name: str, column: declared.History, learned: Learned) -> "History":
    """The fitted column."""
    found = {s: learned.statistics.get(f"{name}/{s}") or 0.0 for s in ("mean", "std", "min", "max")}
    shift, scale = numeric.scaling(name, column.numeric, found)
    sources, dtypes = zip(*learned.types[name].items(), strict=True)
    unseen = learned.statistics[f"{name}/unseen"] or 0.0
    return History(name, sources, dtypes, learned.frames[name], unseen, column.numeric.log, shift, scale)


@dataclass(frozen=True)
class History(Fitted):
    """A fitted history column."""

    name: str
    sources: tuple[str, ...]
    dtypes: tuple[pl.DataType, ...]
    snapshot: pl.DataFrame
    unseen: float
    log: bool
    shift: float
    scale: float
    kind: ClassVar[Kind] = "float"

    @property
    def raw(self) -> dict[str, pl.DataType]:
        """The keys."""
        return dict(zip(self.sources, self.dtypes, strict=True))

    @property
    def optional(self) -> dict[str, pl.DataType]:
        """A fresher value."""
        return {self.name: pl.Float64()}

    @property
    def unknown(self) -> str:
        """Keys without past rows."""
        return f"without past rows: {self.unseen:.6g}"

    @property
    def scaling(self) -> tuple[object, ...]:
        """The keys, how the number is compressed, shift and scale; what was known of the keys is data, as rows are."""
        return (*super().scaling, self.log, self.shift, self.scale)

    def looked_up(self) -> pl.Expr:
        """The number as it was after the last row that was trained on, Float64, for logs that are only scored."""
        snapshot = Snapshot(self.snapshot, self.unseen)

        def found(hashes: pl.Series) -> pl.Series:
            return pl.Series(snapshot.of(hashes.to_numpy()).astype(np.float64))

        return key_hashes(self.raw, self.name).map_batches(found, return_dtype=pl.Float64, is_elementwise=True)

    def polars(self) -> list[pl.Expr]:
        """Scaled values, Float32, from the number that encoding has added to the raw columns."""
        source = raw_name(self.name)
        return numeric.Number(self.name, source, pl.Float64(), None, self.log, self.shift, self.scale).polars()

    def torch(self) -> nn.Module:
        """Scaled values, float32 (B,), from raw keys or from a fresher number."""
        infinity = float("inf")
        number = numeric.NumberModule(raw_name(self.name), -infinity, infinity, self.log, self.shift, self.scale)
        known_K, value_K = (torch.from_numpy(self.snapshot[c].to_numpy().copy()) for c in ("key", "value"))
        return HistoryModule(number, self.name, KeyHashes(self.raw), known_K, value_K, self.unseen)


class HistoryModule(nn.Module):
    """`History` inside the artefact."""

    known: Tensor
    value: Tensor

    def __init__(
        self,
        number: numeric.NumberModule,
        name: str,
        hashes: KeyHashes,
        known_K: Tensor,
        value_K: Tensor,
        unseen: float,
    ) -> None:
        super().__init__()
        if not len(known_K):  # nothing to search in: a key that no row has
            known_K, value_K = torch.zeros(1, dtype=torch.int64), torch.full((1,), unseen)
        self.number = number
        self.source = number.source
        self.name = name
        self.hashes = hashes
        self.register_buffer("known", known_K)
        self.register_buffer("value", value_K)
        self.unseen = unseen

    def forward(
        self, numbers: dict[str, Tensor], texts: dict[str, list[str]], lengths: dict[str, Tensor], batch: int
    ) -> Tensor:
        """Scaled values, float32 (B,)."""
        value_B = self.looked_up(self.hashes(numbers, texts, batch)[0])
        if self.name in numbers:
            fresh_B = numbers_tensor(numbers[self.name])
            value_B = torch.where(torch.isnan(fresh_B), value_B, fresh_B)
        scaled_B: Tensor = self.number({self.source: value_B}, texts, lengths, batch)
        return scaled_B

    def looked_up(self, hash_B: Tensor) -> Tensor:
        """The values of keys, float64 (B,)."""
        place_B = torch.searchsorted(self.known, hash_B).clamp(max=self.known.numel() - 1)
        value_B = self.value[place_B].to(torch.float64)
        return torch.where(self.known[place_B] == hash_B, value_B, torch.full_like(value_B, self.unseen))
