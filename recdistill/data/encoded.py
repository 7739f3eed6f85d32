"""An encoded log on disk: its manifest, its files, its fitted columns."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import polars as pl
import pyarrow.parquet as pq

from recdistill.data.fit import FittedColumn, FittedSpec
from recdistill.data.transforms.bag import Bag
from recdistill.data.transforms.buckets import Buckets
from recdistill.data.transforms.numeric import Number
from recdistill.data.transforms.rows import HashedRows, Rows, VocabularyRows
from recdistill.data.transforms.single import Single
from recdistill.errors import LogError
from recdistill.spec.features import FeatureSpec

GROUP_ROWS = 65_536  # of a parquet row group, the unit that training shuffles

_KINDS: dict[str, type] = {"single": Single, "bag": Bag, "number": Number, "buckets": Buckets}
_INTEGERS = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)
_TYPES = {str(t()): t() for t in (pl.String, pl.Boolean, pl.Float16, pl.Float32, pl.Float64, *_INTEGERS)}


@dataclass(frozen=True)
class EncodedLog:
    """A folder that `encode` has written.

    Attributes:
        folder: where it lies.
        fingerprint: hash of all that it was made from.
        spec: the feature spec.
        fitted: the fitted columns.
        rows: rows of each split, and ``left_out``.
        views: names of the columns in each kind of file.
    """

    folder: Path
    fingerprint: str
    spec: FeatureSpec
    fitted: FittedSpec
    rows: dict[str, int]
    views: dict[str, list[str]]

    @classmethod
    def open(cls, folder: Path) -> "EncodedLog":
        """The encoded log in a folder.

        Raises:
            LogError: there is none, or it cannot be read.
        """
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            spec = FeatureSpec.model_validate(manifest["spec"])
            fitted = load_fitted(folder)
            log = cls(folder, manifest["fingerprint"], spec, fitted, manifest["rows"], manifest["views"])
            log._check_files()
            return log
        except (OSError, ValueError, LookupError, TypeError, pl.exceptions.PolarsError) as error:
            raise LogError(f"{folder}: holds no encoded log ({error}); encode it again") from None

    def _check_files(self) -> None:
        """Raises ValueError if a file is missing or cut short."""
        for split, rows in self.rows.items():
            for view in self.views if (self.folder / split).exists() else ():
                found = sum(pq.ParquetFile(file).metadata.num_rows for file in self.files(split, view))
                if found != rows:
                    raise ValueError(f"{split}/{view} has {found} rows instead of {rows}")

    def files(self, split: str, view: str) -> list[Path]:
        """The files of one view of a split, in order."""
        return sorted((self.folder / split).glob(f"{view}-*.parquet"))

    def labels(self, split: str) -> pl.LazyFrame:
        """Row ids, raw labels and roles of a split, in the order of the log."""
        return self.view(split, "labels")

    def view(self, split: str, view: str) -> pl.LazyFrame:
        """Row ids and encoded columns of a view of a split, in the order of the log."""
        return pl.scan_parquet(self.files(split, view), glob=False)

    def groups(self, split: str) -> pl.DataFrame | None:
        """The raw group of each row of a split, or None if the spec names no group."""
        return self.labels(split).select("group").collect() if self.spec.group else None

    def row_groups(self, split: str) -> list[tuple[int, int]]:
        """(file, row group) of every row group of a split, in order."""
        files = self.files(split, "labels")
        return [(i, g) for i, f in enumerate(files) for g in range(pq.ParquetFile(f).metadata.num_row_groups)]


def save_fitted(fitted: FittedSpec, folder: Path) -> None:
    """Write fitted columns: scalars as JSON, each vocabulary once as parquet."""
    columns: dict[str, dict[str, Any]] = {}
    (folder / "vocabularies").mkdir(parents=True)
    for name, column in fitted.columns.items():
        kind = next(k for k, t in _KINDS.items() if type(column) is t)
        state = dict(vars(column)) | {"fitted": kind, "dtype": str(column.dtype)}
        if isinstance(column, Single | Bag):
            hashed = isinstance(column.rows, HashedRows)
            state["rows"] = column.rows.buckets if isinstance(column.rows, HashedRows) else None
            path = vocabulary_file(folder, column.table)
            if not hashed and isinstance(column.rows, VocabularyRows) and not path.exists():
                column.rows.values.rename("value").to_frame().write_parquet(path, statistics=False)
        columns[name] = state
    (folder / "fitted.json").write_text(json.dumps(columns, indent=1), encoding="utf-8")


def load_fitted(folder: Path) -> FittedSpec:
    """Read what `save_fitted` has written."""
    states = json.loads((folder / "fitted.json").read_text(encoding="utf-8"))
    tables: dict[str, Rows] = {}
    columns: dict[str, FittedColumn] = {}
    for name, state in states.items():
        kind = state.pop("fitted")
        state["dtype"] = _TYPES[state["dtype"]]
        if kind in ("single", "bag"):
            table = state["table"]
            if table not in tables:
                buckets = state["rows"]
                path = vocabulary_file(folder, table)
                tables[table] = (
                    HashedRows(buckets) if buckets else VocabularyRows(pl.read_parquet(path, glob=False)["value"])
                )
            state["rows"] = tables[table]
        if kind == "number" and state["clip"] is not None:
            state["clip"] = tuple(state["clip"])
        if kind == "buckets":
            state["cuts"] = tuple(state["cuts"])
        columns[name] = _KINDS[kind](**state)
    return FittedSpec(columns)


def vocabulary_file(folder: Path, table: str) -> Path:
    """Where the vocabulary of a table lies."""
    return folder / "vocabularies" / f"{quote(table, safe='')}.parquet"
