"""A raw log becomes an encoded one: sharded parquet that training reads without looking at raw values again.

    OUT/
      manifest.json                    what was encoded, from what, and what is in it; its fingerprint
      fitted.json, vocabularies/*.parquet   the fitted columns
      train/ valid/ test/
        serving-00000.parquet          row id and the serving columns
        post_event-00000.parquet       row id and the encoded post-event columns; the same rows in the same order
        labels-00000.parquet           row id, raw binary post-event columns, and the roles (group, time, weight, ...)

The three views lie in separate files, so that whoever reads the serving view cannot see anything else. Files are
written in the order of the log with fixed row groups; encoding the same input again gives the same bytes, and is
skipped when nothing changed.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from recdistill.data.encoded import GROUP_ROWS, EncodedLog, load_fitted, save_fitted
from recdistill.data.files import log_files, partition_of
from recdistill.data.fit import FittedSpec, check_types, extended, fit
from recdistill.data.log import LEFT_OUT, ROW_ID, SPLIT, SPLITS, open_log, with_split
from recdistill.data.replay import histories, with_histories, with_lookups
from recdistill.data.transforms.catalog import types_of
from recdistill.data.transforms.elements import unequal
from recdistill.data.transforms.raw import numbers
from recdistill.errors import LogError
from recdistill.publish import aside, is_foreign, put, remove
from recdistill.spec.columns import Bag, Binary, Sequence
from recdistill.spec.features import FeatureSpec

FORMAT = 3  # raise whenever the same input would encode to something else
SHARD_ROWS = 32 * GROUP_ROWS
CHUNK_ROWS = 2 * GROUP_ROWS
HISTORIES = "histories"  # a folder for values of history columns, while a log is encoded
WHOLE_FILE = 256 * 2**20  # files up to this size are fingerprinted by content, larger ones by footer and time stamp

Progress = Callable[[int], None]


def encode(
    spec: FeatureSpec,
    log: str,
    out: Path,
    *,
    where: Mapping[str, Any] | None = None,
    fit_on: tuple[str, ...] = ("train",),
    fitted: FittedSpec | None = None,
    extends: Path | None = None,
    progress: Progress = lambda _: None,
) -> EncodedLog:
    """The encoded log in ``out``; an existing one with the same fingerprint is returned as it is.

    Args:
        spec: the feature spec.
        log: path of the raw log.
        out: the folder to write; it appears only when it is complete.
        where: raw columns and the value (or values) that a row must have.
        fit_on: the splits whose rows vocabularies and scales are learned from.
        fitted: columns fitted before; nothing is learned then, all rows form the ``test`` split, and an existing log is
            encoded again. History columns are looked up in what was known then; a column of their own name, if the log
            has one, holds fresher values.
        extends: the folder of an earlier encoded log, or of a run's fitted columns: its values keep their rows, new
            ones are appended, and scales and cuts stay as they were.
        progress: called with the number of rows after each chunk.

    Raises:
        LogError: the log does not hold what the spec promises, or ``out`` holds something else.
    """
    where = dict(where or {})
    fingerprint = fingerprint_of(spec, log, where, fit_on if fitted is None else ("before",), extends)
    if fitted is None and (existing := _existing(out, fingerprint)):
        return existing
    if is_foreign(out, "manifest.json", {"format", "fingerprint", "views"}):
        raise LogError(f"{out}: exists and holds no encoded log; give another folder")
    with aside(out) as work:
        work.mkdir()
        if fitted is None:
            frame, learned, rows = _learn(spec, log, where, fit_on, extends, work / HISTORIES)
        else:
            frame, learned, rows = _looked_up(spec, log, where, fitted)
        manifest = {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "spec": spec.model_dump(mode="json"),
            "where": where,
            "fit_on": list(fit_on),
            "rows": rows,
            "views": _write(work, frame, spec, learned, progress),
            "tables": learned.tables,
        }
        remove(work / HISTORIES)
        (work / "manifest.json").write_text(json.dumps(manifest, indent=1, default=str), encoding="utf-8")
        # what another process has put there in the meantime stays, since somebody may be reading it
        put(work, out, replace=out.exists() and (fitted is not None or _existing(out, fingerprint) is None))
    return EncodedLog.open(out)


Opened = tuple[pl.LazyFrame, FittedSpec, dict[str, int]]


def _learn(
    spec: FeatureSpec,
    log: str,
    where: Mapping[str, Any],
    fit_on: tuple[str, ...],
    extends: Path | None,
    folder: Path,
) -> Opened:
    """A log with its splits, the columns fitted on it, and the rows of each split; values of histories in a folder."""
    frame = with_split(open_log(spec, log, where), spec)
    rows = _check(frame, spec, log, SPLITS)
    frame, snapshots = with_histories(frame, spec, fit_on, sum(rows.values()), folder)
    learned = fit(spec, frame.filter(pl.col(SPLIT).is_in(fit_on)), snapshots)
    return frame, learned if extends is None else extended(learned, load_fitted(extends)), rows


def _looked_up(spec: FeatureSpec, log: str, where: Mapping[str, Any], fitted: FittedSpec) -> Opened:
    """The same for a log from which nothing is learned; all its rows form the test split."""
    frame = open_log(spec, log, where, learn=False, optional=histories(spec))
    check_types(fitted, spec, frame.collect_schema())
    frame = frame.with_columns(pl.lit("test").alias(SPLIT))
    rows = _check(frame, spec, log, ("test",))
    return with_lookups(frame, fitted), fitted, rows


def _existing(out: Path, fingerprint: str) -> EncodedLog | None:
    """The encoded log that lies in a folder already, if it is whole and of this fingerprint."""
    try:
        existing = EncodedLog.open(out)
    except LogError:
        return None
    return existing if existing.fingerprint == fingerprint else None


def fingerprint_of(
    spec: FeatureSpec, log: str, where: Mapping[str, Any], fit_on: tuple[str, ...], extends: Path | None = None
) -> str:
    """A hash of everything that the encoded log depends on."""
    files = {
        path: ["/".join([file_fingerprint(file), *partition_of(file, path)]) for file in log_files(path)]
        for path in [log, *spec.join]
    }
    parts = {"format": FORMAT, "spec": spec.model_dump(mode="json"), "where": where, "fit_on": fit_on}
    if extends is not None:
        parts["extends"] = EncodedLog.fingerprint_in(extends)
    text = json.dumps([parts, list(files.values())], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def file_fingerprint(path: Path) -> str:
    """A hash of a file's content; of a large file, of its size, its time stamp and its footer."""
    digest = hashlib.blake2b(digest_size=16)
    stat = path.stat()
    with path.open("rb") as file:
        if stat.st_size > WHOLE_FILE:
            digest.update(f"{stat.st_size} {stat.st_mtime_ns}".encode())
            file.seek(-(2**20), 2)
        while chunk := file.read(2**22):
            digest.update(chunk)
    return digest.hexdigest()


def _write(
    out: Path, frame: pl.LazyFrame, spec: FeatureSpec, fitted: FittedSpec, progress: Progress
) -> dict[str, list[str]]:
    """Write the views of all splits and the fitted columns; returns the columns of each view."""
    views = {
        "serving": [e for name in spec.serving for e in fitted.columns[name].polars()],
        "post_event": [e for name in spec.post_event for e in fitted.columns[name].polars()],
        "labels": label_columns(spec, frame.collect_schema()),
    }
    names = {view: [e.meta.output_name() for e in columns] for view, columns in views.items()}
    encoded = frame.select(
        ROW_ID, SPLIT, *(e.alias(f"{view}/{e.meta.output_name()}") for view, columns in views.items() for e in columns)
    )
    writers = {split: _SplitWriter(out / split) for split in SPLITS}
    for chunk in _chunks(encoded):
        for split, writer in writers.items():
            part = chunk.filter(pl.col(SPLIT) == split)
            if len(part):
                writer.write({view: _view(part, view, columns) for view, columns in names.items()})
        progress(len(chunk))
    for writer in writers.values():
        writer.close()
    save_fitted(fitted, out)
    return names


def _check(frame: pl.LazyFrame, spec: FeatureSpec, log: str, required: tuple[str, ...]) -> dict[str, int]:
    """Rows of each split, after checks that need one look at all rows.

    Raises:
        LogError: no rows, an empty split, repeated row ids, labels other than 0, 1 and null, or unusable weights.
    """
    tests = _tests(spec, frame.collect_schema())
    counts = (pl.col(SPLIT).eq(name).sum().alias(f"/{name}") for name in (*SPLITS, LEFT_OUT))
    unique = pl.col(ROW_ID).n_unique().alias("/unique")
    query = frame.select(*counts, unique, pl.len().alias("/all"), *(t.sum().alias(n) for n, (t, _) in tests.items()))
    found = query.collect(engine="streaming").row(0, named=True)
    if not found["/all"]:
        raise LogError(f"{log}: no row is left; check the log and the job's `where`")
    if found["/unique"] < found["/all"]:
        raise LogError(
            f"{log}: {found['/all'] - found['/unique']} of {found['/all']} rows repeat the row id {spec.row_id}; add a "
            "column that tells them apart, or remove the duplicates"
        )
    for name, (_, expected) in tests.items():
        if found[name]:
            raise LogError(f"{log}: {name.removeprefix('/')}: {found[name]} rows hold something else than {expected}")
    rows = {name: int(found[f"/{name}"]) for name in (*SPLITS, LEFT_OUT)}
    if empty := [name for name in required if not rows[name]]:
        raise LogError(f"{log}: the {empty[0]} split has no rows; check `split` in the spec (rows: {rows})")
    return rows


def _tests(spec: FeatureSpec, schema: pl.Schema) -> dict[str, tuple[pl.Expr, str]]:
    """By column, which rows hold what they must not, and what they should hold."""
    tests = {}
    for name, column in spec.columns.items():
        if isinstance(column, Binary):
            tests[name] = (~_binary(spec, name, schema).is_in([0.0, 1.0]), "0, 1 or null (not known yet)")
        if isinstance(column, Bag) and column.weights is not None:
            beside, what = column.weights, "weight"
        elif isinstance(column, Sequence) and (times := column.times_of(name)) is not None:
            beside, what = times, "time"
        else:
            continue
        types_of(name, spec, schema)  # which says it better if one of the two holds no lists
        expected = f"one {what} in {beside!r} for each value; cut both lists alike"
        tests[name] = (unequal(spec.source(name), column.separator, beside), expected)
    if spec.weight:
        weight = numbers(pl.col(spec.weight), schema[spec.weight], "weight")
        tests["/weight"] = (weight.is_null() | (weight < 0), "finite weights of at least 0")
    return tests


def _binary(spec: FeatureSpec, name: str, schema: pl.Schema) -> pl.Expr:
    source = spec.source(name)
    return numbers(pl.col(source), schema[source], name)


def label_columns(spec: FeatureSpec, schema: pl.Schema) -> list[pl.Expr]:
    """Columns that travel raw: binary post-event columns, weight and reference scores as Float32, the other roles."""
    binary = [
        _binary(spec, n, schema).cast(pl.Float32).alias(n) for n, c in spec.post_event.items() if isinstance(c, Binary)
    ]
    scores = [numbers(pl.col(n), schema[n], n).cast(pl.Float32).alias(f"reference:{n}") for n in spec.reference]
    weight = [pl.col(spec.weight).cast(pl.Float32).alias("weight")] if spec.weight else []
    roles = {"group": spec.group, "time": spec.time, "scenario": spec.scenario}
    return [*binary, *scores, *weight, *(pl.col(raw).alias(role) for role, raw in roles.items() if raw)]


def _chunks(frame: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    yield from frame.collect_batches(chunk_size=CHUNK_ROWS, maintain_order=True, engine="streaming")


def _view(part: pl.DataFrame, view: str, names: list[str]) -> pa.Table:
    return part.select(pl.col(ROW_ID).alias("row_id"), *(pl.col(f"{view}/{n}").alias(n) for n in names)).to_arrow()


class _SplitWriter:
    """Writes the views of one split side by side, in row groups and shards of fixed sizes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pending: dict[str, list[pa.Table]] = {}
        self.writers: dict[str, pq.ParquetWriter] = {}
        self.rows_pending = 0
        self.rows_in_shard = 0
        self.shard = 0
        folder.mkdir()

    def write(self, views: dict[str, pa.Table]) -> None:
        """Take some rows; the views hold the same rows in the same order."""
        for view, table in views.items():
            self.pending.setdefault(view, []).append(table)
        self.rows_pending += next(iter(views.values())).num_rows
        while self.rows_pending >= GROUP_ROWS:
            self._flush(GROUP_ROWS)

    def close(self) -> None:
        """Write what is left."""
        if self.rows_pending:
            self._flush(self.rows_pending)
        self._close_shard()

    def _flush(self, rows: int) -> None:
        for view, tables in self.pending.items():
            table = pa.concat_tables(tables)
            if view not in self.writers:
                path = self.folder / f"{view}-{self.shard:05d}.parquet"
                self.writers[view] = pq.ParquetWriter(
                    path, table.schema, compression="lz4", use_dictionary=_texts(table.schema), write_statistics=False
                )
            self.writers[view].write_table(table.slice(0, rows), row_group_size=GROUP_ROWS)
            self.pending[view] = [table.slice(rows)]
        self.rows_pending -= rows
        self.rows_in_shard += rows
        if self.rows_in_shard >= SHARD_ROWS:
            self._close_shard()

    def _close_shard(self) -> None:
        for writer in self.writers.values():
            writer.close()
        self.writers = {}
        self.rows_in_shard = 0
        self.shard += 1


def _texts(schema: pa.Schema) -> list[str]:
    """Only texts repay a dictionary; encoded ids are read fastest as they are."""
    return [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
