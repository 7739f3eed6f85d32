"""What is learned from the training rows before encoding: vocabularies, cuts, shifts and scales.

All statistics are lazy aggregations over the same scan and are collected together in one streaming pass.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recdistill.data.transforms.bag import Bag as FittedBag
from recdistill.data.transforms.bag import elements
from recdistill.data.transforms.buckets import Buckets
from recdistill.data.transforms.numeric import Number, shaped
from recdistill.data.transforms.raw import NOT_WHOLE, keys, numbers
from recdistill.data.transforms.rows import FIRST, HashedRows, Rows, VocabularyRows
from recdistill.data.transforms.single import Single, keyed_by_text
from recdistill.errors import LogError
from recdistill.spec.features import AnyColumn, Bag, Binary, FeatureSpec, Numeric, Vocabularied

FittedColumn = Single | FittedBag | Number | Buckets


@dataclass(frozen=True)
class FittedSpec:
    """Every typed column of a spec, ready to encode."""

    columns: dict[str, FittedColumn]

    @property
    def tables(self) -> dict[str, int]:
        """Rows of each embedding table, by its name."""
        sizes: dict[str, int] = {}
        for column in self.columns.values():
            if isinstance(column, Single | FittedBag):
                sizes[column.table] = column.rows.count
            elif isinstance(column, Buckets):
                sizes[column.table] = column.count
        return sizes


def fit(spec: FeatureSpec, train: pl.LazyFrame) -> FittedSpec:
    """The fitted columns of a spec, from its training rows.

    Args:
        spec: the feature spec.
        train: raw columns of the rows to learn from.

    Raises:
        LogError: a raw column does not suit its type.
    """
    types = element_types(spec, train.collect_schema())
    owners = [n for n, c in spec.columns.items() if isinstance(c, Vocabularied) and c.vocabulary is None and c.hash is None]
    counts = [_counts(spec, owner, train, types) for owner in owners]
    numeric = {n: c for n, c in spec.columns.items() if isinstance(c, Numeric | Binary)}
    summary = train.select(pl.len().alias("__rows__"), *_summaries(spec, numeric, types))
    *counted, summarised = pl.collect_all([*counts, summary], engine="streaming")
    rows: dict[str, Rows] = {
        n: HashedRows(c.hash) for n, c in spec.columns.items() if isinstance(c, Vocabularied) and c.hash is not None
    }
    for owner, values in zip(owners, counted, strict=True):
        rows[owner] = VocabularyRows(_whole(values, owner)[owner])
    statistics = summarised.row(0, named=True)
    return FittedSpec({name: _fitted(spec, name, types[name], rows, statistics) for name in spec.columns})


def element_types(spec: FeatureSpec, schema: pl.Schema) -> dict[str, pl.DataType]:
    """The raw type of each typed column; for lists that of their elements.

    Raises:
        LogError: a list column holds no lists, or another column does.
    """
    types: dict[str, pl.DataType] = {}
    for name, column in spec.columns.items():
        dtype = schema[spec.source(name)]
        if isinstance(column, Bag) and column.separator is None:
            if not isinstance(dtype, pl.List):
                raise LogError(f"{name}: expected a list, found {dtype}; give `separator` if the lists are written as texts")
            dtype = dtype.inner if isinstance(dtype.inner, pl.DataType) else dtype.inner()
        elif isinstance(dtype, pl.List | pl.Array):
            raise LogError(f"{name}: holds lists, but its type is {column.type}; declare it `type: list` without separator")
        types[name] = pl.String() if keyed_by_text(dtype) else dtype
    return types


def _counts(spec: FeatureSpec, owner: str, train: pl.LazyFrame, types: dict[str, pl.DataType]) -> pl.LazyFrame:
    """Values of a vocabulary, most frequent first, counted over all columns that use it."""
    users = [n for n, c in spec.columns.items() if isinstance(c, Vocabularied) and spec.table(n) == owner]
    parts = []
    for name in users:
        column = spec.columns[name]
        raw = pl.col(spec.source(name))
        if isinstance(column, Bag):
            frame = train.select(elements(raw, column.separator).alias(owner)).explode(owner)
            raw = pl.col(owner)
        else:
            frame = train
        parts.append(frame.select(keys(raw, types[name], name).alias(owner)))
    least = spec.columns[owner].min_count  # type: ignore[union-attr]
    counted = pl.concat(parts).drop_nulls().group_by(owner).agg(count=pl.len()).filter(pl.col("count") >= least)
    return counted.sort(["count", owner], descending=[True, False])


def _whole(values: pl.DataFrame, name: str) -> pl.DataFrame:
    if values[name].dtype == pl.Int64 and (values[name] == NOT_WHOLE).any():
        raise LogError(f"{name}: holds fractions, which are no keys; declare it numeric, with `buckets` if it needs a table")
    return values


def _summaries(spec: FeatureSpec, numeric: dict[str, AnyColumn], types: dict[str, pl.DataType]) -> Iterable[pl.Expr]:
    for name, column in numeric.items():
        number = numbers(pl.col(spec.source(name)), types[name], name)
        if isinstance(column, Numeric) and column.buckets is not None:
            for k in range(1, column.buckets):
                yield number.quantile(k / column.buckets, "lower").alias(f"{name}/{k}")
        else:
            number = shaped(number, column.clip, log=column.log) if isinstance(column, Numeric) else number
            yield number.mean().alias(f"{name}/mean")
            yield number.std(ddof=0).alias(f"{name}/std")
            yield number.min().alias(f"{name}/min")
            yield number.max().alias(f"{name}/max")


def _fitted(
    spec: FeatureSpec, name: str, dtype: pl.DataType, rows: dict[str, Rows], found: dict[str, float | None]
) -> FittedColumn:
    column, source = spec.columns[name], spec.source(name)
    if isinstance(column, Vocabularied):
        table = spec.table(name)
        if isinstance(column, Bag):
            return FittedBag(name, source, dtype, rows[table], table, column.separator, column.max_length)
        return Single(name, source, dtype, rows[table], table)
    if isinstance(column, Numeric) and column.buckets is not None:
        cuts = {found[f"{name}/{k}"] for k in range(1, column.buckets)} - {None, found.get(f"{name}/min")}
        return Buckets(name, source, dtype, tuple(sorted(c for c in cuts if c is not None)), table=name)
    clip, log = (column.clip, column.log) if isinstance(column, Numeric) else (None, False)
    shift, scale = _scaling(column, {s: found[f"{name}/{s}"] or 0.0 for s in ("mean", "std", "min", "max")})
    return Number(name, source, dtype, clip, log, shift, scale)


def _scaling(column: Numeric | Binary, found: dict[str, float]) -> tuple[float, float]:
    """Shift and scale; a constant column is only shifted."""
    kind = column.scale if isinstance(column, Numeric) else "centre"
    if kind == "standard":
        return found["mean"], found["std"] or 1.0
    if kind == "minmax":
        return found["min"], (found["max"] - found["min"]) or 1.0
    return (found["mean"], 1.0) if kind == "centre" else (0.0, 1.0)


def same_rows(new: FittedColumn, old: FittedColumn) -> NDArray[np.int64]:
    """For each row of the new table the row of the old one that stands for the same value, or -1.

    Raises:
        LogError: the columns are of different kinds, so that no row corresponds to another.
    """
    if isinstance(new, Single | FittedBag) and isinstance(old, Single | FittedBag):
        if isinstance(new.rows, VocabularyRows) and isinstance(old.rows, VocabularyRows):
            known = pl.Series(range(FIRST, old.rows.count), dtype=pl.Int64)
            values = new.rows.values
            rows = values.replace_strict(old.rows.values, known, default=-1, return_dtype=pl.Int64).to_numpy()
            return np.concatenate([np.arange(FIRST), rows])
        if isinstance(new.rows, HashedRows) and new.rows == old.rows:
            return np.arange(new.rows.count)
    elif type(new) is type(old) and getattr(new, "cuts", None) == getattr(old, "cuts", ()):
        return np.arange(FIRST + len(getattr(new, "cuts", ())) + 1)
    raise LogError(f"warm start: column {new.name!r} is encoded differently in the other run; use the same spec for it")
