"""The parquet files of a log as one lazy frame of raw columns, in the types in which they are read everywhere.

Encoding, scoring and the artefact's callers see the same types, because all of them read through `scan`:

- integers, or floats, of several widths in different files are read at the widest of them;
- decimals are read as floats, those without decimal places as integers; arrays as lists;
- folders called ``name=value`` give all rows below them a column (hive partitions), unless the files hold it.
"""

import glob
import itertools
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from recdistill.errors import LogError

WIDTHS: tuple[tuple[pl.DataType, ...], ...] = (
    (pl.Int8(), pl.Int16(), pl.Int32(), pl.Int64()),
    (pl.UInt8(), pl.UInt16(), pl.UInt32(), pl.UInt64()),
    (pl.Float32(), pl.Float64()),
)
UPCAST = pl.ScanCastOptions(integer_cast="upcast", float_cast="upcast")


def log_files(path: str) -> list[Path]:
    """The parquet files of a log, sorted: a file, all ``*.parquet`` below a folder, or the files that match a pattern.

    Raises:
        LogError: there are none.
    """
    root = Path(path)
    found = [root] if root.is_file() else sorted(root.rglob("*.parquet")) if root.is_dir() else []
    found = found or sorted(Path(name) for name in glob.glob(path, recursive=True))  # noqa: PTH207, absolute patterns
    found = [file for file in found if file.is_file()]  # some tools write folders that are called *.parquet
    if not found:
        raise LogError(f"{path}: no parquet file here; give a file, a folder of *.parquet files or a pattern")
    return found


def scan(path: str) -> pl.LazyFrame:
    """A lazy frame over all files of a log, in the order of their names.

    Raises:
        LogError: a file cannot be read.
    """
    files = log_files(path)
    schemas = [_schema(file) for file in files]
    first = {name: widest(s[name] for s in schemas if name in s) or dtype for name, dtype in schemas[0].items()}
    partitions = _partitions(files, path, {name for schema in schemas for name in schema})
    frame = pl.scan_parquet(
        files, glob=False, schema=first, hive_partitioning=bool(partitions), cast_options=UPCAST, extra_columns="ignore"
    )
    try:
        schema = frame.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise LogError(f"{path}: cannot be read as parquet: {error}") from None
    above = [n for n in schema if n not in first and n not in partitions]  # the log itself lies in such a folder
    casts = [pl.col(n).cast(read_as(t)) for n, t in schema.items() if read_as(t) != t]
    return frame.drop(above).with_columns(casts) if above or casts else frame


def check_files(path: str, columns: Iterable[str]) -> None:
    """One look at the footers of all files.

    Raises:
        LogError: a file cannot be read, or differs from the first one in a column that is needed.
    """
    files = log_files(path)
    first = _schema(files[0])
    for file in files[1:]:
        schema = _schema(file)
        for name in columns:
            if name in first and (name not in schema or widest([schema[name], first[name]]) is None):
                found = f"holds it as {schema[name]}" if name in schema else "lacks it"
                raise LogError(
                    f"{file}: {name!r} is {first[name]} in {files[0].name}, this file {found}; write all files alike"
                )


def widest(dtypes: Iterable[pl.DataType]) -> pl.DataType | None:
    """The type that holds the values of all of them: their own, or the widest of integers or of floats.

    >>> widest([pl.Int32(), pl.Int64()]), widest([pl.Int32(), pl.Float64()])
    (Int64, None)
    """
    given = list(dtypes)
    if all(dtype == given[0] for dtype in given):
        return given[0]
    alike = next((kind for kind in WIDTHS if all(dtype in kind for dtype in given)), None)
    return None if alike is None else max(given, key=alike.index)


def read_as(dtype: pl.DataType) -> pl.DataType:
    """The type in which a column is read: floats or integers for decimals, lists for arrays, otherwise its own.

    Decimals without decimal places are often keys, which floats would no longer tell apart.

    >>> read_as(pl.Array(pl.Decimal(9, 2), 3))
    List(Float64)
    """
    if isinstance(dtype, pl.List | pl.Array):
        inner = dtype.inner if isinstance(dtype.inner, pl.DataType) else dtype.inner()
        return pl.List(read_as(inner))
    if isinstance(dtype, pl.Decimal):
        return pl.Float64() if dtype.scale else pl.Int64()
    return dtype


def partition_of(file: Path, path: str) -> list[str]:
    """The folders called ``name=value`` between the place that a log is given by and one of its files."""
    place = Path(path)
    if not place.is_dir() and place != file:  # a pattern
        place = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), place.parts))
    return [part for part in file.relative_to(place).parent.parts if "=" in part]


def _partitions(files: list[Path], path: str, held: set[str]) -> list[str]:
    """The columns that folders give, if all files have the same ones and no folder names one that the files hold."""
    found = {tuple(part.partition("=")[0] for part in partition_of(file, path)) for file in files}
    named = {part.partition("=")[0] for file in files for part in file.parent.parts if "=" in part}
    return [] if len(found) > 1 or named & held else [*next(iter(found))]


def _schema(file: Path) -> pl.Schema:
    try:
        return pl.scan_parquet(file, glob=False, hive_partitioning=False).collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise LogError(f"{file}: cannot be read as parquet: {error}") from None
