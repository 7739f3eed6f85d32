"""Columns of type ``cross``: the values of several raw columns taken together, one embedding row by hash.

A missing value counts as a value of its own; the cross is missing only where all its values are.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from recdistill.data.transforms.column import Fitted, Kind, Learned
from recdistill.data.transforms.hashing import (
    bucket_of,
    hash_texts_tensor,
    key_hash,
    splitmix64,
    splitmix64_tensor,
)
from recdistill.data.transforms.raw import key_type, keyed_by_text, keys, keys_tensor
from recdistill.data.transforms.rows import FIRST, MISSING
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
        parts = [keys(pl.col(source), dtype, self.name).alias(source) for source, dtype in self.raw.items()]
        row = pl.struct(parts).map_batches(self._rows, return_dtype=pl.Int32, is_elementwise=True)
        return [row.alias(self.name)]

    def _rows(self, parts: pl.Series) -> pl.Series:
        """The rows of keys, a struct of them."""
        total_B = np.zeros(len(parts), np.int64)
        known_B = np.zeros(len(parts), np.bool_)
        for source in self.sources:
            key = parts.struct.field(source)
            total_B = splitmix64(total_B ^ key_hash(key))
            known_B |= key.is_not_null().to_numpy()
        return pl.Series(np.where(known_B, FIRST + bucket_of(total_B, self.buckets), MISSING), dtype=pl.Int32)

    def torch(self) -> nn.Module:
        """Embedding rows, int64 (B,), from raw inputs."""
        return CrossModule(list(self.sources), [keyed_by_text(d) for d in self.dtypes], self.buckets)


class CrossModule(nn.Module):
    """`Cross` inside the artefact."""

    sources: list[str]
    text: list[bool]

    def __init__(self, sources: list[str], text: list[bool], buckets: int) -> None:
        super().__init__()
        self.sources = sources
        self.text = text
        self.buckets = buckets

    def forward(
        self,
        numbers: dict[str, Tensor],
        texts: dict[str, list[str]],
        lengths: dict[str, Tensor],  # noqa: ARG002
        batch: int,
    ) -> Tensor:
        """Embedding rows, int64 (B,)."""
        total_B = torch.zeros(batch, dtype=torch.int64)
        known_B = torch.zeros(batch, dtype=torch.bool)
        for i, source in enumerate(self.sources):
            if self.text[i]:
                values = texts[source] if source in texts else [""] * batch
                present: list[bool] = []
                for value in values:
                    present.append(len(value) > 0)
                hash_B = hash_texts_tensor(values)
                known_B = known_B | torch.tensor(present, dtype=torch.bool)
            else:
                key_B = torch.full((batch,), -9223372036854775807 - 1, dtype=torch.int64)
                if source in numbers:
                    key_B = keys_tensor(numbers[source])
                hash_B = splitmix64_tensor(key_B)
                known_B = known_B | (key_B != -9223372036854775807 - 1)
            total_B = splitmix64_tensor(total_B ^ hash_B)
        row_B = 2 + (total_B & 0x7FFFFFFFFFFFFFFF) % self.buckets
        return torch.where(known_B, row_B, torch.zeros_like(row_B))
