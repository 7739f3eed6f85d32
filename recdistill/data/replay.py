"""History columns of a log: the log is replayed once for each of them, and the numbers join its raw columns.

Rows that are trained on see the rows before them; all other rows see what is known after the last one that is trained
on, which is also what the artefact holds.

What must be in memory at once is a few numbers per row (keys as hashes, times, outcomes). The values are written to a
file that is mapped into memory, in the order of the log, and are read from it by row number: the log itself streams
through as before, no join has to hold it, and nothing depends on the sizes of its chunks.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recdistill.data.fit import FittedSpec
from recdistill.data.history import causal, has_time
from recdistill.data.log import SPLIT
from recdistill.data.times import collected, per_unit, time_of
from recdistill.data.transforms import history
from recdistill.data.transforms.hashing import hashable, key_hash
from recdistill.data.transforms.history import Snapshot, raw_name
from recdistill.data.transforms.raw import MISSING_INT, NOT_WHOLE, keys, numbers
from recdistill.data.transforms.several import key_hashes
from recdistill.errors import LogError
from recdistill.spec.columns import History
from recdistill.spec.features import FeatureSpec

ROW = "__history_row__"


def histories(spec: FeatureSpec) -> dict[str, History]:
    """The history columns of a spec."""
    return {name: column for name, column in spec.columns.items() if isinstance(column, History)}


def with_histories(
    frame: pl.LazyFrame, spec: FeatureSpec, fit_on: Iterable[str], rows: int, folder: Path
) -> tuple[pl.LazyFrame, dict[str, Snapshot]]:
    """The log with the values of its history columns, and what is known after the last row that is trained on.

    Args:
        frame: the log with its splits.
        spec: the feature spec.
        fit_on: the splits that are trained on.
        rows: number of rows.
        folder: for the values; the frame reads them as long as it is used.

    Raises:
        LogError: a raw column does not suit.
    """
    columns = histories(spec)
    if not columns:
        return frame, {}
    folder.mkdir()
    made, snapshots = [], {}
    for i, (name, column) in enumerate(columns.items()):
        value_N, snapshots[name] = replay(name, column, frame, str(spec.time), fit_on, rows)
        np.save(folder / f"{i}.npy", value_N)
        made.append(_gathered(np.load(folder / f"{i}.npy", mmap_mode="r")).alias(raw_name(name)))
    return frame.with_row_index(ROW).with_columns(made), snapshots


def _gathered(value_N: NDArray[np.float32]) -> pl.Expr:
    def gather(rows: pl.Series) -> pl.Series:
        return pl.Series(value_N[rows.to_numpy()])

    return pl.col(ROW).map_batches(gather, return_dtype=pl.Float32, is_elementwise=True)


def with_lookups(frame: pl.LazyFrame, fitted: FittedSpec) -> pl.LazyFrame:
    """A log that is only scored, with the values that its fitted history columns hold, or fresher ones of its own."""
    schema = frame.collect_schema()
    made = []
    for name, column in fitted.columns.items():
        if isinstance(column, history.History):
            fresher = [numbers(pl.col(name), schema[name], name)] if name in schema else []
            made.append(pl.coalesce(*fresher, column.looked_up()).alias(raw_name(name)))
    return frame.with_columns(made)


def replay(
    name: str, column: History, frame: pl.LazyFrame, time: str, fit_on: Iterable[str], rows: int
) -> tuple[NDArray[np.float32], Snapshot]:
    """The value of a history column in each row, (N,), and what is known after the last row that is trained on."""
    schema = frame.collect_schema()
    wanted = _wanted(name, column, schema) | {
        "time": time_of(time, schema[time]),
        "trained": pl.col(SPLIT).is_in(list(fit_on)),
    }
    found = collected(frame.select(e.alias(n) for n, e in wanted.items()), rows)
    if found.pop("fraction", np.zeros(1, bool)).any():
        raise LogError(f"{name}: a key holds fractions, which are no keys; cast or round the column in the log")
    trained_N, key_N = found.pop("trained"), found.pop("key")
    past = {n: array[trained_N] for n, array in found.items()}
    outcome_T = past.get("value", np.ones(len(past["time"])))
    counts_T = ~np.isnan(outcome_T) & has_time(past["time"])
    mean = float(outcome_T[counts_T].mean()) if counts_T.any() else 0.0
    half_life = None if column.half_life is None else column.half_life * per_unit(schema[time])
    seen = causal(key_N[trained_N], past["time"], outcome_T, counts_T, past.get("session"), half_life)
    frame_K = pl.DataFrame({"key": seen.key_K, "value": _value(column, mean, seen.end_n_K, seen.end_sum_K)})
    snapshot = Snapshot(frame_K, float(_value(column, mean, np.zeros(1), np.zeros(1))[0]))
    value_N = np.empty(rows, np.float32)
    value_N[trained_N] = _value(column, mean, seen.n_N, seen.sum_N)
    value_N[~trained_N] = snapshot.of(key_N[~trained_N])
    return value_N, snapshot


def _value(column: History, mean: float, n: NDArray[np.float64], total: NDArray[np.float64]) -> NDArray[np.float32]:
    """Counts, or rates that start from the mean."""
    if not column.rate:
        return total.astype(np.float32)
    return ((total + column.prior_rows * mean) / (n + column.prior_rows)).astype(np.float32)


def _wanted(name: str, column: History, schema: pl.Schema) -> dict[str, pl.Expr]:
    """What is read of each row besides its time and split."""
    sources = history.types(name, column, schema)
    wanted = {"key": key_hashes(sources, name)}
    if floats := [keys(pl.col(s), t, name) == NOT_WHOLE for s, t in sources.items() if t.is_float()]:
        wanted["fraction"] = pl.any_horizontal(floats).fill_null(False)
    if column.of is not None:
        wanted["value"] = numbers(pl.col(column.of), schema[column.of], f"{name}.of").fill_null(float("nan"))
    if column.session is not None:
        wanted["session"] = _session(column.session, schema[column.session], name)
    return wanted


def _session(source: str, dtype: pl.DataType, name: str) -> pl.Expr:
    """The hash of each session; the int64 minimum where it is missing."""
    if not hashable(dtype):
        raise LogError(f"{name}.session: expected integers, floats, texts or times, found {dtype}; cast the column")
    missing = key_hash(pl.Series([None], dtype=dtype))[0]
    hashed = pl.col(source).map_batches(lambda s: pl.Series(key_hash(s)), return_dtype=pl.Int64, is_elementwise=True)
    return pl.when(hashed != missing).then(hashed).otherwise(MISSING_INT)
