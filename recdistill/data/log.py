"""From parquet files and side tables to one lazy frame: raw columns, row ids and splits, nothing encoded yet."""

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime
from typing import Any

import polars as pl
import pyarrow as pa

from recdistill.data import past
from recdistill.data.files import check_files, scan
from recdistill.data.transforms.hashing import bucket_of, hash_in_turn, hash_texts, hashable, key_hash, splitmix64
from recdistill.errors import LogError
from recdistill.spec.columns import Binary
from recdistill.spec.features import FeatureSpec, Join, SplitByColumn, SplitByHash, SplitByTime
from recdistill.spec.strict import nearest, nearest_of

ROW_ID, SPLIT = "__row_id__", "__split__"
SPLITS = ("train", "valid", "test")
LEFT_OUT = "left_out"


def raw_columns(spec: FeatureSpec, where: Mapping[str, Any], *, learn: bool = True) -> list[str]:
    """Every raw column that the spec or a row filter reads, once; unless columns are learned, only what rows need."""
    roles = [*spec.row_id, spec.time, spec.group, spec.weight, spec.scenario, *spec.reference, *where]
    if isinstance(spec.split, SplitByColumn):
        roles.append(spec.split.column)
    if isinstance(spec.split, SplitByHash):
        roles.append(spec.split.hash.key)
    sources = [raw for name in spec.columns for raw in (spec.sources(name) if learn else spec.given(name))]
    return list(dict.fromkeys(name for name in [*roles, *sources] if name is not None))


def open_log(
    spec: FeatureSpec,
    path: str,
    where: Mapping[str, Any] | None = None,
    learn: bool = True,
    optional: Iterable[str] = (),
) -> pl.LazyFrame:
    """The log with its side tables joined and its rows filtered: the raw columns that are needed, and `ROW_ID`.

    Args:
        spec: the feature spec.
        path: the log.
        where: raw columns and the value (or values) that a row must have.
        learn: whether columns are learned from the log; otherwise what histories are made from may be absent.
        optional: raw columns that are kept where the log has them.

    Raises:
        LogError: columns are missing, ambiguous or of a type that does not suit their role, or a side table has several
            rows for a key.
    """
    where = where or {}
    frame = _with_events(scan(path), spec, path)
    origin = dict.fromkeys(frame.collect_schema().names(), path)
    built = past.pasts(spec, origin)
    used = [raw for raw in raw_columns(spec, where, learn=learn) if raw not in past.made(built)]
    needed = list(dict.fromkeys([*used, *past.needed(built, spec.time)]))
    wanted = list(dict.fromkeys([*needed, *optional]))
    frame = frame.with_row_index("__row__")
    keys = {key for join in spec.join.values() for key in join.keys}
    check_files(path, [*wanted, *keys])
    for table, join in spec.join.items():
        side = _side_table(table, join, {*wanted, *(keys - origin.keys())}, origin)
        frame = _join(frame, side, join, path, table)
        origin |= dict.fromkeys(set(side.collect_schema().names()) - set(join.keys), table)
    if absent := [name for name in needed if name not in origin]:
        raise LogError(
            f"{path}: the spec needs columns that neither the log nor a joined table has: {nearest_of(absent, origin)}"
        )
    schema = frame.collect_schema()
    for key in spec.row_id:
        _check_hashable(schema[key], f"row_id {key!r}")
    _check_roles(schema, spec)
    if built:
        frame = past.with_pasts(frame, built, str(spec.time), "__row__", _among)
    frame = frame.with_columns(_row_id(spec.row_id).alias(ROW_ID))
    kept = [*(name for name in wanted if name in origin), *past.made(built)]
    frame = frame.select(ROW_ID, *dict.fromkeys(kept))
    for name, value in where.items():
        frame = frame.filter(_among(name, value, schema[name]))
    return frame


def _with_events(frame: pl.LazyFrame, spec: FeatureSpec, path: str) -> pl.LazyFrame:
    """The log with the labels that every row of it has.

    Raises:
        LogError: it holds such a column already.
    """
    always = [spec.source(n) for n, column in spec.columns.items() if isinstance(column, Binary) and column.always]
    if held := [name for name in always if name in frame.collect_schema()]:
        raise LogError(f"{path}: holds {held[0]!r}, which the spec says every row has; remove `always`")
    return frame.with_columns(pl.lit(1, dtype=pl.Int8).alias(name) for name in always)


def _among(name: str, value: Any, dtype: pl.DataType) -> pl.Expr:
    """Whether a column holds a value, or one of several."""
    return pl.col(name).is_in(allowed(value, dtype, name), nulls_equal=True)


def allowed(value: Any, dtype: pl.DataType, name: str) -> list[Any]:
    """The values of a filter, in the type of its column.

    Raises:
        LogError: a value is none of that type.
    """
    values = value if isinstance(value, list) else [value]
    try:
        given = pl.Series([_dated(v, dtype) for v in values])
        cast = given.cast(dtype)
        if not isinstance(value, dict) and cast.cast(given.dtype).eq_missing(given).all():
            return cast.to_list()
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError):
        pass
    raise LogError(f"where: {name!r} is {dtype}, which {value!r} is not; write values as the log holds them")


def _check_hashable(dtype: pl.DataType, place: str) -> None:
    if not hashable(dtype):
        raise LogError(f"{place}: expected integers, floats, texts or times, found {dtype}; cast the column in the log")


def _check_roles(schema: pl.Schema, spec: FeatureSpec) -> None:
    """Refuse scenarios and groups that hold no single values, and groups of fractions, in which rows are mostly alone.

    Raises:
        LogError: one of the two columns does.
    """
    for role, name in (("scenario", spec.scenario), ("group", spec.group)):
        if name is None:
            continue
        dtype = schema[name]
        if dtype.is_nested() or dtype in (pl.Binary, pl.Object) or (role == "group" and dtype.is_float()):
            expected = "integers, texts or times" if role == "group" else "integers, floats, texts or times"
            raise LogError(f"{role} {name!r}: expected {expected}, found {dtype}; cast the column in the log")


def _side_table(table: str, join: Join, needed: Iterable[str], origin: Mapping[str, str]) -> pl.LazyFrame:
    side = scan(table)
    names = side.collect_schema().names()
    check_files(table, names)
    if absent := [key for key in join.keys if key not in names]:
        raise LogError(f"join {table}: no key column {absent[0]!r}; {nearest(absent[0], names)}")
    offered = [n for n in names if n not in join.keys and not any(fnmatch.fnmatch(n, p) for p in join.drop)]
    if join.keep is not None:
        offered = [n for n in offered if any(fnmatch.fnmatch(n, pattern) for pattern in join.keep)]
    wanted = [n for n in offered if n in set(needed)]
    if twice := [n for n in wanted if n in origin]:
        raise LogError(f"join {table}: {twice[0]!r} exists in {origin[twice[0]]} already; name it in `drop`")
    repeated = side.group_by(join.keys).len().filter(pl.col("len") > 1).select(pl.len()).collect().item()
    if repeated:
        raise LogError(
            f"join {table}: {repeated} keys of {join.keys} occur several times; a side table has one row per key"
        )
    return side.select(*join.keys, *wanted)


def _join(frame: pl.LazyFrame, side: pl.LazyFrame, join: Join, path: str, table: str) -> pl.LazyFrame:
    types, side_types = frame.collect_schema(), side.collect_schema()
    for key in join.keys:
        if key not in types:
            raise LogError(f"join {table}: {path} has no key column {key!r}; {nearest(key, types.names())}")
        if types[key] != side_types[key]:
            if not (types[key].is_integer() and side_types[key].is_integer()):
                raise LogError(
                    f"join {table}: {key!r} is {types[key]} in {path} but {side_types[key]} here; cast one of the files"
                )
            side = side.with_columns(pl.col(key).cast(types[key], strict=False))
    return frame.join(side, on=join.keys, how="left", maintain_order="left")


def _row_id(keys: list[str]) -> pl.Expr:
    """The 64-bit identity of each row: the hash of its key columns in turn, or its number in the log."""
    if not keys:
        return pl.col("__row__").cast(pl.Int64)

    return pl.struct(keys).map_batches(
        lambda columns: pl.Series(hash_in_turn(columns)), return_dtype=pl.Int64, is_elementwise=True
    )


def with_split(frame: pl.LazyFrame, spec: FeatureSpec) -> pl.LazyFrame:
    """The frame with `SPLIT`: train, valid, test, or left out for rows in no range of a split by column.

    Raises:
        LogError: a column does not suit the split.
    """
    split = spec.split
    if isinstance(split, SplitByColumn):
        return frame.with_columns(_by_column(frame, split).alias(SPLIT))
    if isinstance(split, SplitByTime) or (split is None and spec.time is not None):
        shares = (split.time.valid, split.time.test) if isinstance(split, SplitByTime) else (0.1, 0.1)
        return frame.with_columns(_by_time(frame, str(spec.time), *shares).alias(SPLIT))
    key = split.hash.key if isinstance(split, SplitByHash) else None
    _check_hashable(frame.collect_schema()[key or ROW_ID], f"split: the key {key!r}")
    shares = (split.hash.valid, split.hash.test) if isinstance(split, SplitByHash) else (0.1, 0.1)
    return frame.with_columns(_by_hash(key, *shares).alias(SPLIT))


def _by_column(frame: pl.LazyFrame, split: SplitByColumn) -> pl.Expr:
    dtype = frame.collect_schema()[split.column]
    raw, assigned = pl.col(split.column), pl.lit(LEFT_OUT)
    if dtype in (pl.Categorical, pl.Enum):
        raw = raw.cast(pl.String)
    try:
        for name, bounds in split.ranges.items():
            low, high = (_dated(bound, dtype) for bound in bounds)
            days = isinstance(dtype, pl.Datetime) and not isinstance(low, datetime)
            column = raw.dt.date() if days else raw  # so that the last day counts to its end
            within = column.is_between(_instant(low, dtype), _instant(high, dtype))
            assigned = pl.when(within).then(pl.lit(name)).otherwise(assigned)
        pl.DataFrame({split.column: [None]}, {split.column: dtype}).select(assigned)
    except (pl.exceptions.PolarsError, ValueError) as error:
        reason = str(error).splitlines()[0]
        offset = ", or with an offset, as in 2024-01-31T12:00:00+01:00" if isinstance(dtype, pl.Datetime) else ""
        raise LogError(
            f"split: {split.column!r} is {dtype}, which the bound {split.train[0]!r} is not ({reason}); write the "
            f"bounds as the log holds them{offset}"
        ) from None
    if isinstance(split.valid, float):
        drawn = _by_hash(None, split.valid, 0.0)
        assigned = pl.when(assigned == "train").then(drawn).otherwise(assigned)
    return assigned


def _dated(value: Any, dtype: pl.DataType) -> Any:
    """The value; for a column of dates also one that is written as text, as JSON does."""
    if not isinstance(value, str) or dtype not in (pl.Date, pl.Datetime):
        return value
    return date.fromisoformat(value) if len(value) == len("2022-04-30") else datetime.fromisoformat(value)


def _instant(value: Any, dtype: pl.DataType) -> pl.Expr:
    """A bound; a time without an offset is one of the column's zone, and a column without a zone is in UTC."""
    if not isinstance(value, datetime) or not isinstance(dtype, pl.Datetime):
        return pl.lit(value)
    if value.tzinfo is None:
        return pl.lit(value).dt.replace_time_zone(dtype.time_zone)
    instant = pl.lit(value.astimezone(UTC).replace(tzinfo=None))
    return instant.dt.convert_time_zone(dtype.time_zone) if dtype.time_zone is not None else instant


def _by_time(frame: pl.LazyFrame, time: str, valid: float, test: float) -> pl.Expr:
    dtype = frame.collect_schema()[time]
    if not (dtype.is_numeric() or dtype.is_temporal()):
        raise LogError(f"time: expected numbers, dates or times, found {dtype} in {time!r}; cast the column in the log")
    cuts = frame.select(
        valid=pl.col(time).quantile(1 - valid - test, "higher"),
        test=pl.col(time).quantile(1 - test, "higher"),
        untimed=(pl.col(time).is_null() | (pl.col(time).is_nan() if dtype.is_float() else False)).sum(),
    ).collect(engine="streaming")
    first_valid, first_test, untimed = cuts.row(0)
    if first_test is None and not untimed:
        return pl.lit("train")  # no rows
    if untimed:
        raise LogError(
            f"time: {untimed} rows have no {time!r}, so that they belong to no split by time; fill them or take them "
            "out of the log, or split by column or hash"
        )
    is_test, is_valid = pl.col(time) >= first_test, pl.col(time) >= first_valid
    return pl.when(is_test).then(pl.lit("test")).when(is_valid).then(pl.lit("valid")).otherwise(pl.lit("train"))


def _by_hash(key: str | None, valid: float, test: float) -> pl.Expr:
    """A split drawn by hash; salted, so that it is independent of everything else drawn from the same hash."""

    def share(keys: pl.Series) -> pl.Series:
        salted = splitmix64(key_hash(keys) ^ hash_texts(pl.Series(["split"]))[0])
        return pl.Series(bucket_of(salted, 1_000_000) / 1_000_000)

    drawn = pl.col(key or ROW_ID).map_batches(share, return_dtype=pl.Float64, is_elementwise=True)
    return (
        pl.when(drawn < test)
        .then(pl.lit("test"))
        .when(drawn < test + valid)
        .then(pl.lit("valid"))
        .otherwise(pl.lit("train"))
    )


def spec_of(spec: FeatureSpec, path: str) -> FeatureSpec:
    """The spec of another log, which is not split and may lack what is known only after the event: labels, weights."""
    known = {*scan(path).collect_schema()}
    for table, join in spec.join.items():
        known |= {*scan(table).collect_schema()} - {*join.keys}
    roles = {role: None for role in ("weight", "group", "scenario") if getattr(spec, role) not in known}
    after = {name: column for name, column in spec.post_event.items() if {*spec.sources(name)} <= known}
    reference = [name for name in spec.reference if name in known]
    further = {"post_event": after, "reference": reference, "split": None, "time": spec.clock}
    return spec.model_copy(update={**roles, **further})


def raw_batches(
    spec: FeatureSpec,
    path: str,
    where: Mapping[str, Any],
    split: str | None,
    columns: list[str],
    rows: int,
    optional: Iterable[str] = (),
) -> Iterator[pa.Table]:
    """Raw rows of a split, or of the whole log, in its order, in tables of ``rows`` rows; the last may be smaller.

    Optional columns are read too, where the log has them.
    """
    frame = open_log(spec, path, where, False, optional)
    columns = [*columns, *(name for name in optional if name in frame.collect_schema())]
    if split is not None:
        frame = with_split(frame, spec).filter(pl.col(SPLIT) == split)
    left: list[pl.DataFrame] = []
    for chunk in frame.select(columns).collect_batches(chunk_size=rows, maintain_order=True, engine="streaming"):
        left.append(chunk)
        if sum(len(part) for part in left) >= rows:
            whole = pl.concat(left)
            for start in range(0, len(whole) - len(whole) % rows, rows):
                yield whole.slice(start, rows).to_arrow()
            left = [whole.slice(len(whole) - len(whole) % rows)]
    if sum(len(part) for part in left):
        yield pl.concat(left).to_arrow()
