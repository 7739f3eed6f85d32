"""Columns of type ``cross``: the values of several raw columns taken together, one embedding row by hash.

A missing value counts as a value of its own; the cross is missing only where all its values are.
"""

from dataclasses import dataclass
from typing import ClassVar

import polars as pl
import torch
from torch import Tensor, nn

from recdistill.data.transforms.column import Fitted, Kind, Learned
from recdistill.data.transforms.hashing import bucket_of
from recdistill.data.transforms.raw import key_type, keyed_by_text
from recdistill.data.transforms.rows import FIRST, MISSING
from recdistill.data.transforms.several import KeyHashes, key_hashes, some_known
from recdistill.spec import columns as declared


def types(name: str, column: declared.Cross, schema: pl.Schema, source: str) -> dict[str, pl.DataType]:  # noqa: ARG001
    """The raw columns and their types.

    Raises:
        LogError: a raw column holds something that cannot be a key.
    """
    for raw in column.of:
        key_type(schema[raw], f"{name}.of {raw!r}")
    return {raw: schema[raw] for raw in column.of}


def fit(name: str, column: declared.Cross, learned: Learned) -> "Cross":
    """The fitted column; nothing is learned."""
    raw = learned.types[name]
    return Cross(name, tuple(raw), tuple(raw.values()), column.hash, table=name)


@dataclass(frozen=True)
class Cross(Fitted):
    """A fitted cross; ``dtypes`` are those of its raw columns, in their order."""

    name: str
    sources: tuple[str, ...]
    dtypes: tuple[pl.DataType, ...]
    buckets: int
    table: str
    kind: ClassVar[Kind] = "id"

    @property
    def raw(self) -> dict[str, pl.DataType]:
        """The raw columns."""
        return dict(zip(self.sources, self.dtypes, strict=True))

    @property
    def tables(self) -> dict[str, int]:
        """A table of its own."""
        return {self.table: FIRST + self.buckets}

    @property
    def unknown(self) -> str:
        """All values are hashed."""
        return "hashed like any other"

    @property
    def meaning(self) -> tuple[object, ...]:
        """The raw columns, whether they hold texts, and the number of buckets."""
        return self.sources, tuple(keyed_by_text(d) for d in self.dtypes), self.buckets

    def polars(self) -> list[pl.Expr]:
        """Embedding rows, Int32."""
        row = key_hashes(self.raw, self.name).map_batches(self._rows, return_dtype=pl.Int32, is_elementwise=True)
        return [pl.when(some_known(self.raw, self.name)).then(row).otherwise(MISSING).cast(pl.Int32).alias(self.name)]

    def _rows(self, hashes: pl.Series) -> pl.Series:
        return pl.Series(FIRST + bucket_of(hashes.to_numpy(), self.buckets), dtype=pl.Int32)

    def torch(self) -> nn.Module:
        """Embedding rows, int64 (B,), from raw inputs."""
        return CrossModule(KeyHashes(self.raw), self.buckets)


class CrossModule(nn.Module):
    """`Cross` inside the artefact."""

    def __init__(self, hashes: KeyHashes, buckets: int) -> None:
        super().__init__()
        self.hashes = hashes
        self.buckets = buckets

    def forward(
        self,
        numbers: dict[str, Tensor],
        texts: dict[str, list[str]],
        lengths: dict[str, Tensor],  # noqa: ARG002
        batch: int,
    ) -> Tensor:
        """Embedding rows, int64 (B,)."""
        hash_B, known_B = self.hashes(numbers, texts, batch)
        row_B = 2 + (hash_B & 0x7FFFFFFFFFFFFFFF) % self.buckets
        return torch.where(known_B, row_B, torch.zeros_like(row_B))
