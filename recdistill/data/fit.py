"""What is learned from the training rows before encoding: vocabularies, cuts, shifts and scales.

All statistics are lazy aggregations over the same scan, collected together in one streaming pass; deviations need a
second one. None depends on the order in which threads reach the rows, so that fitting again gives the same bits.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recdistill.data.transforms import catalog, numeric
from recdistill.data.transforms.bag import Bag as FittedBag
from recdistill.data.transforms.column import Fitted, Learned
from recdistill.data.transforms.elements import elements
from recdistill.data.transforms.history import History as FittedHistory
from recdistill.data.transforms.history import Snapshot, raw_number
from recdistill.data.transforms.raw import NOT_WHOLE, key_type, keyed_by_text, keys, numbers
from recdistill.data.transforms.rows import FIRST, HashedRows, Rows, VocabularyRows
from recdistill.data.transforms.sequence import Sequence as FittedSequence
from recdistill.data.transforms.single import Single
from recdistill.errors import LogError
from recdistill.spec.columns import Bag, History, Numeric, Sequence, Vocabularied
from recdistill.spec.features import FeatureSpec


@dataclass(frozen=True)
class FittedSpec:
    """Every typed column of a spec, ready to encode."""

    columns: dict[str, Fitted]

    @property
    def tables(self) -> dict[str, int]:
        """Rows of each embedding table, by its name."""
        return {name: rows for column in self.columns.values() for name, rows in column.tables.items()}

    def counts(self, table: str) -> NDArray[np.float64] | None:
        """How often the value of each row of a table occurred in training, 0 for the reserved rows; None if hashed."""
        for column in self.columns.values():
            rows = getattr(column, "rows", None)
            if table in column.tables and isinstance(rows, VocabularyRows) and getattr(column, "table", None) == table:
                return np.concatenate([np.zeros(FIRST), rows.counts.to_numpy().astype(np.float64)])
        return None


def fit(spec: FeatureSpec, train: pl.LazyFrame, snapshots: Mapping[str, Snapshot] | None = None) -> FittedSpec:
    """The fitted columns of a spec, from its training rows.

    Args:
        spec: the feature spec.
        train: raw columns of the rows to learn from.
        snapshots: what is known after the last of them, for each history column.

    Raises:
        LogError: a raw column does not suit its type.
    """
    known = snapshots or {}
    schema = train.collect_schema()
    lists = frozenset(raw for raw, dtype in schema.items() if isinstance(dtype, pl.List))
    learned = Learned(spec, element_types(spec, schema), lists, frames={n: s.frame for n, s in known.items()})
    vocabularied = {n: c for n, c in spec.columns.items() if isinstance(c, Vocabularied)}
    owners = [n for n, c in vocabularied.items() if c.vocabulary is None and c.hash is None]
    counts = [_counts(learned, owner, train) for owner in owners]
    summaries = [aggregate for name in spec.columns for aggregate in catalog.summaries(name, learned)]
    summary = train.select(pl.len().alias("__rows__"), *summaries)
    queries = catalog.queries(learned, train)
    *found, summarised = pl.collect_all([*counts, *queries.values(), summary], engine="streaming")
    counted, frames = found[: len(counts)], dict(zip(queries, found[len(counts) :], strict=True))
    rows: dict[str, Rows] = {n: HashedRows(c.hash) for n, c in vocabularied.items() if c.hash is not None}
    for owner, values in zip(owners, counted, strict=True):
        rows[owner] = VocabularyRows(_whole(values[owner], learned), values["count"])
    statistics = summarised.row(0, named=True) | {f"{n}/unseen": s.unseen for n, s in known.items()}
    statistics |= numeric.moments(train, _standardised(learned), statistics)
    learned = replace(learned, rows=rows, statistics=statistics, frames=learned.frames | frames)
    return FittedSpec({name: catalog.fit(name, learned) for name in spec.columns})


def element_types(spec: FeatureSpec, schema: pl.Schema) -> dict[str, dict[str, pl.DataType]]:
    """The raw columns of each typed column with their types; of lists, those of their elements.

    Raises:
        LogError: a list column holds no lists, or another column does.
    """
    return {name: catalog.types_of(name, spec, schema) for name in spec.columns}


def check_types(fitted: FittedSpec, spec: FeatureSpec, schema: pl.Schema) -> None:
    """Raw columns must be of the kind that they were when the columns were fitted; integers may be wider or narrower.

    Raises:
        LogError: a column is of another kind.
    """
    for name, raw in element_types(spec, schema).items():
        for source, dtype in raw.items():
            known = fitted.columns[name].raw[source]
            alike = _kind(dtype, name) == _kind(known, name) and (dtype == pl.UInt64) == (known == pl.UInt64)
            listed = isinstance(schema[source], pl.List), source in fitted.columns[name].lists
            if not alike or listed[0] != listed[1]:
                here, there = (
                    f"List({t})" if is_list else t for t, is_list in zip((dtype, known), listed, strict=True)
                )
                raise LogError(
                    f"{name}: is {here} here, but was {there} when it was fitted; cast the column in the log"
                )


def _kind(dtype: pl.DataType, place: str) -> str:
    """How a raw type travels; a time of another unit would be another number."""
    return str(dtype) if dtype.is_temporal() else key_type(dtype, place)


def _standardised(learned: Learned) -> list[tuple[str, Numeric, pl.Expr]]:
    """The numeric columns that are scaled by mean and deviation, with their raw numbers."""
    plain = [
        (name, column, numbers(pl.col(learned.only(name)[0]), learned.only(name)[1], name))
        for name, column in learned.spec.columns.items()
        if isinstance(column, Numeric) and not column.embedded and column.scale == "standard"
    ]
    past = {name: column for name, column in learned.spec.columns.items() if isinstance(column, History)}
    return plain + [(n, c.numeric, raw_number(n)) for n, c in past.items() if c.scale == "standard"]


def _counts(learned: Learned, owner: str, train: pl.LazyFrame) -> pl.LazyFrame:
    """Values of a vocabulary, most frequent first, counted over all columns that use it."""
    users = {name: next(iter(learned.types[name].items())) for name in _users(learned.spec, owner)}
    if len({keyed_by_text(dtype) for _, dtype in users.values()}) > 1:
        found = ", ".join(f"{name} {dtype}" for name, (_, dtype) in users.items())
        raise LogError(
            f"{owner}: texts and numbers cannot share a vocabulary, found {found}; cast the columns in the log"
        )
    parts = []
    for name, (source, dtype) in users.items():
        column, frame, raw = learned.spec.columns[name], train, pl.col(source)
        if isinstance(column, Bag | Sequence):
            frame = train.select(elements(raw, column.separator).alias(owner)).explode(owner)
            raw = pl.col(owner)
        parts.append(frame.select(keys(raw, dtype, name).alias(owner)))
    least = learned.spec.columns[owner].min_count  # type: ignore[union-attr]
    counted = pl.concat(parts).drop_nulls().group_by(owner).agg(count=pl.len()).filter(pl.col("count") >= least)
    return counted.sort(["count", owner], descending=[True, False])


def _users(spec: FeatureSpec, owner: str) -> list[str]:
    """The columns that use a vocabulary, its owner's and others."""
    return [n for n, c in spec.columns.items() if isinstance(c, Vocabularied) and spec.table(n) == owner]


def _whole(values: pl.Series, learned: Learned) -> pl.Series:
    name = values.name
    users = _users(learned.spec, name)
    if any(next(iter(learned.types[n].values())).is_float() for n in users) and (values == NOT_WHOLE).any():
        raise LogError(
            f"{name}: holds fractions, which are no keys; declare it numeric, with `buckets` if it needs a table"
        )
    return values


def extended(new: FittedSpec, old: FittedSpec) -> FittedSpec:
    """The columns of a later log as a continuation of an earlier one's.

    Values keep their rows and new ones follow, most frequent first; counts add up. Scales, cuts and weights stay as
    they were; histories are those of the later log on the earlier scale.

    Raises:
        LogError: a column is encoded differently in the earlier log.
    """
    tables: dict[str, Rows] = {}
    columns: dict[str, Fitted] = {}
    for name, column in new.columns.items():
        before = old.columns.get(name)
        if before is None or type(before) is not type(column) or before.raw != column.raw:
            raise LogError(f"{name}: is encoded differently in the earlier log; extend it by the same spec")
        keyed = Single | FittedBag | FittedSequence
        if isinstance(column, keyed) and isinstance(before, keyed):
            if type(column.rows) is not type(before.rows):
                raise LogError(f"{name}: has a vocabulary in one log and a hash in the other; use the same spec")
            if isinstance(column.rows, VocabularyRows) and isinstance(before.rows, VocabularyRows):
                rows = tables.setdefault(column.table, before.rows.followed_by(column.rows))
                columns[name] = replace(column, rows=rows)
                continue
        if isinstance(column, FittedHistory) and isinstance(before, FittedHistory):
            columns[name] = replace(column, shift=before.shift, scale=before.scale)
        else:
            columns[name] = before
    return FittedSpec(columns)


def same_rows(new: Fitted, old: Fitted) -> NDArray[np.int64]:
    """For each row of the new table the row of the old one that stands for the same value, or -1.

    Raises:
        LogError: the columns are of different kinds, so that no row corresponds to another.
    """
    keyed = Single | FittedBag | FittedSequence
    if isinstance(new, keyed) and isinstance(old, keyed):
        alike = keyed_by_text(new.dtype) == keyed_by_text(old.dtype)
        if isinstance(new.rows, VocabularyRows) and isinstance(old.rows, VocabularyRows) and alike:
            known = pl.Series(range(FIRST, old.rows.count), dtype=pl.Int64)
            values = new.rows.values
            rows = values.replace_strict(old.rows.values, known, default=-1, return_dtype=pl.Int64).to_numpy()
            return np.concatenate([np.arange(FIRST), rows])
        if isinstance(new.rows, HashedRows) and new.rows == old.rows:
            return np.arange(new.rows.count)
    elif type(new) is type(old) and new.meaning is not None and new.meaning == old.meaning:
        (count,) = new.tables.values()
        return np.arange(count)
    raise LogError(f"warm start: column {new.name!r} is encoded differently in the other run; use the same spec for it")
