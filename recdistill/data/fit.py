"""What is learned from the training rows before encoding: vocabularies, cuts, shifts and scales.

All statistics are lazy aggregations over the same scan, collected together in one streaming pass; deviations need a
second one. None depends on the order in which threads reach the rows, so that fitting again gives the same bits.
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
from recdistill.data.transforms.raw import NOT_WHOLE, key_type, keys, numbers
from recdistill.data.transforms.rows import FIRST, HashedRows, Rows, VocabularyRows
from recdistill.data.transforms.single import Single, keyed_by_text
from recdistill.errors import LogError
from recdistill.spec.features import Bag, Binary, FeatureSpec, Numeric, Vocabularied

STEPS = 2**50  # of a column's range: values are added up as integers, since sums of floats depend on their order

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
    owners = [
        n for n, c in spec.columns.items() if isinstance(c, Vocabularied) and c.vocabulary is None and c.hash is None
    ]
    counts = [_counts(spec, owner, train, types) for owner in owners]
    numeric = {n: c for n, c in spec.columns.items() if isinstance(c, Numeric | Binary)}
    summary = train.select(pl.len().alias("__rows__"), *_summaries(spec, numeric, types))
    *counted, summarised = pl.collect_all([*counts, summary], engine="streaming")
    rows: dict[str, Rows] = {
        n: HashedRows(c.hash) for n, c in spec.columns.items() if isinstance(c, Vocabularied) and c.hash is not None
    }
    for owner, values in zip(owners, counted, strict=True):
        rows[owner] = VocabularyRows(_whole(values[owner], any(types[n].is_float() for n in _users(spec, owner))))
    statistics = summarised.row(0, named=True)
    statistics |= _moments(spec, train, types, statistics)
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
                raise LogError(
                    f"{name}: expected a list, found {dtype}; give `separator` if the lists are written as texts"
                )
            dtype = dtype.inner if isinstance(dtype.inner, pl.DataType) else dtype.inner()
        elif isinstance(column, Bag) and not keyed_by_text(dtype):
            raise LogError(f"{name}: `separator` cuts texts, found {dtype}; remove it, or cast the column in the log")
        elif isinstance(dtype, pl.List | pl.Array):
            raise LogError(
                f"{name}: holds lists, but its type is {column.type}; declare it `type: list` without separator"
            )
        types[name] = pl.String() if keyed_by_text(dtype) else dtype
    return types


def check_types(fitted: FittedSpec, spec: FeatureSpec, schema: pl.Schema) -> None:
    """Raw columns must be of the kind that they were when the columns were fitted; integers may be wider or narrower.

    Raises:
        LogError: a column is of another kind.
    """
    for name, dtype in element_types(spec, schema).items():
        known = fitted.columns[name].dtype
        if key_type(dtype, name) != key_type(known, name) or (dtype == pl.UInt64) != (known == pl.UInt64):
            raise LogError(f"{name}: is {dtype} here, but was {known} when it was fitted; cast the column in the log")


def _counts(spec: FeatureSpec, owner: str, train: pl.LazyFrame, types: dict[str, pl.DataType]) -> pl.LazyFrame:
    """Values of a vocabulary, most frequent first, counted over all columns that use it."""
    users = _users(spec, owner)
    if len({keyed_by_text(types[name]) for name in users}) > 1:
        found = ", ".join(f"{name} {types[name]}" for name in users)
        raise LogError(
            f"{owner}: texts and numbers cannot share a vocabulary, found {found}; cast the columns in the log"
        )
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


def _users(spec: FeatureSpec, owner: str) -> list[str]:
    """The columns that use a vocabulary, its owner's and others."""
    return [n for n, c in spec.columns.items() if isinstance(c, Vocabularied) and spec.table(n) == owner]


def _whole(values: pl.Series, floats: bool) -> pl.Series:
    if floats and (values == NOT_WHOLE).any():
        name = values.name
        raise LogError(
            f"{name}: holds fractions, which are no keys; declare it numeric, with `buckets` if it needs a table"
        )
    return values


def _summaries(
    spec: FeatureSpec, numeric: dict[str, Numeric | Binary], types: dict[str, pl.DataType]
) -> Iterable[pl.Expr]:
    for name, column in numeric.items():
        number = numbers(pl.col(spec.source(name)), types[name], name)
        if isinstance(column, Binary):
            yield number.mean().alias(
                f"{name}/mean"
            )  # exact, of zeros and ones; numeric columns get theirs from `_moments`
            continue
        number = shaped(number, column.clip, log=column.log)
        yield number.min().alias(f"{name}/min")
        yield number.max().alias(f"{name}/max")
        for k in range(1, column.buckets or 0):
            yield number.quantile(k / (column.buckets or 1), "lower").alias(f"{name}/{k}")


def _moments(
    spec: FeatureSpec, train: pl.LazyFrame, types: dict[str, pl.DataType], found: dict[str, float | None]
) -> dict[str, float]:
    """Mean and standard deviation of the columns that are standardised and not constant."""
    sums: list[pl.Expr] = []
    ranges: dict[str, tuple[float, float]] = {}
    for name, column in spec.columns.items():
        if not isinstance(column, Numeric) or column.buckets is not None or column.scale != "standard":
            continue
        low, high = found[f"{name}/min"] or 0.0, found[f"{name}/max"] or 0.0
        if not low < high or not np.isfinite(high - low):
            continue
        ranges[name] = (low, high - low)
        number = shaped(numbers(pl.col(spec.source(name)), types[name], name), column.clip, log=column.log)
        step = (number - low) / (high - low) * float(STEPS)
        sums.append(number.count().alias(f"{name}/count"))
        sums.append(step.round().cast(pl.Int128).sum().alias(f"{name}/sum"))
        sums.append((step * step / float(STEPS)).round().cast(pl.Int128).sum().alias(f"{name}/squares"))
    whole = train.select(pl.len().alias("__rows__"), *sums).collect(engine="streaming").row(0, named=True)
    moments: dict[str, float] = {}
    for name, (low, span) in ranges.items():
        count, total, squares = (whole[f"{name}/{what}"] for what in ("count", "sum", "squares"))
        moments[f"{name}/mean"] = low + span * (total / (count * STEPS))
        moments[f"{name}/std"] = span * float(np.sqrt((squares * count * STEPS - total * total) / (count * STEPS) ** 2))
    return moments


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
        # nothing in the training rows lies below the lowest value, so a bucket there would never be trained
        cuts = {found[f"{name}/{k}"] for k in range(1, column.buckets)} - {None, found[f"{name}/min"]}
        return Buckets(name, source, dtype, tuple(sorted(c for c in cuts if c is not None)), table=name)
    clip, log = (column.clip, column.log) if isinstance(column, Numeric) else (None, False)
    shift, scale = _scaling(name, column, {s: found.get(f"{name}/{s}") or 0.0 for s in ("mean", "std", "min", "max")})
    return Number(name, source, dtype, clip, log, shift, scale)


def _scaling(name: str, column: Numeric | Binary, found: dict[str, float]) -> tuple[float, float]:
    """Shift and scale; a constant column is only shifted."""
    if isinstance(column, Binary):
        return found["mean"], 1.0
    if column.scale == "none":
        return 0.0, 1.0
    span = found["max"] - found["min"]
    if not np.isfinite(span):
        raise LogError(f"{name}: values from {found['min']} to {found['max']} cannot be scaled; use `clip` or `log`")
    return (found["mean"], found["std"] or 1.0) if column.scale == "standard" and span else (found["min"], span or 1.0)


def same_rows(new: FittedColumn, old: FittedColumn) -> NDArray[np.int64]:
    """For each row of the new table the row of the old one that stands for the same value, or -1.

    Raises:
        LogError: the columns are of different kinds, so that no row corresponds to another.
    """
    if isinstance(new, Single | FittedBag) and isinstance(old, Single | FittedBag):
        alike = keyed_by_text(new.dtype) == keyed_by_text(old.dtype)
        if isinstance(new.rows, VocabularyRows) and isinstance(old.rows, VocabularyRows) and alike:
            known = pl.Series(range(FIRST, old.rows.count), dtype=pl.Int64)
            values = new.rows.values
            rows = values.replace_strict(old.rows.values, known, default=-1, return_dtype=pl.Int64).to_numpy()
            return np.concatenate([np.arange(FIRST), rows])
        if isinstance(new.rows, HashedRows) and new.rows == old.rows:
            return np.arange(new.rows.count)
    elif type(new) is type(old) and getattr(new, "cuts", None) == getattr(old, "cuts", ()):
        return np.arange(FIRST + len(getattr(new, "cuts", ())) + 1)
    raise LogError(f"warm start: column {new.name!r} is encoded differently in the other run; use the same spec for it")
