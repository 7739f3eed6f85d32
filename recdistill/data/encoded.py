"""An encoded log on disk: its manifest, its files, its fitted columns."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import polars as pl
import pyarrow.parquet as pq

from recdistill.data.fit import FittedSpec
from recdistill.data.transforms.catalog import KINDS
from recdistill.data.transforms.rows import HashedRows, VocabularyRows
from recdistill.errors import LogError
from recdistill.spec.features import FeatureSpec

GROUP_ROWS = 65_536  # of a parquet row group, the unit that training shuffles

_INTEGERS = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)
_PLAIN = (pl.String(), pl.Boolean(), pl.Float16(), pl.Float32(), pl.Float64(), *(t() for t in _INTEGERS))
_UNITS: tuple[Literal["ms", "us", "ns"], ...] = ("ms", "us", "ns")
_TIMES = (pl.Date(), pl.Time(), *map(pl.Datetime, _UNITS), *map(pl.Duration, _UNITS))
_TYPES = {str(t): t for t in (*_PLAIN, *_TIMES)}


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

    @staticmethod
    def fingerprint_in(folder: Path) -> str:
        """The fingerprint of the encoded log whose manifest lies in a folder.

        Raises:
            LogError: there is none.
        """
        try:
            return str(json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["fingerprint"])
        except (OSError, ValueError, KeyError) as error:
            raise LogError(
                f"{folder}: holds no fitted columns ({error}); name an encoded log, or the `fitted` folder of a run"
            ) from None

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

    def roles(self, split: str) -> pl.DataFrame:
        """The raw ``group``, ``scenario`` and ``weight`` of each row of a split, as far as the spec names them."""
        named = [role for role in ("group", "scenario", "weight") if getattr(self.spec, role) is not None]
        return self.labels(split).select("row_id", *named).collect().drop("row_id")

    def row_groups(self, split: str) -> list[tuple[int, int]]:
        """(file, row group) of every row group of a split, in order."""
        files = self.files(split, "labels")
        return [(i, g) for i, f in enumerate(files) for g in range(pq.ParquetFile(f).metadata.num_row_groups)]


def save_fitted(fitted: FittedSpec, folder: Path) -> None:
    """Write fitted columns: scalars as JSON, each vocabulary once and each data frame as parquet."""
    columns: dict[str, dict[str, Any]] = {}
    (folder / "vocabularies").mkdir(parents=True)
    for name, column in fitted.columns.items():
        state: dict[str, Any] = {"fitted": next(k for k, t in KINDS.items() if type(column) is t)}
        for key, value in vars(column).items():
            if isinstance(value, VocabularyRows):
                path = vocabulary_file(folder, vars(column)["table"])
                if not path.exists():
                    frame = pl.DataFrame({"value": value.values, "count": value.counts})
                    frame.write_parquet(path, statistics=False)
                state[key] = {"vocabulary": vars(column)["table"]}
            elif isinstance(value, HashedRows):
                state[key] = {"hash": value.buckets}
            elif isinstance(value, pl.DataType):
                state[key] = {"dtype": str(value)}
            elif isinstance(value, tuple) and all(isinstance(inner, pl.DataType) for inner in value):
                state[key] = [{"dtype": str(inner)} for inner in value]
            elif isinstance(value, pl.DataFrame):
                value.write_parquet(vocabulary_file(folder, f"{name}.{key}"), statistics=False)
                state[key] = {"frame": f"{name}.{key}"}
            else:
                state[key] = value
        columns[name] = state
    (folder / "fitted.json").write_text(json.dumps(columns, indent=1), encoding="utf-8")


def load_fitted(folder: Path) -> FittedSpec:
    """Read what `save_fitted` has written."""
    states = json.loads((folder / "fitted.json").read_text(encoding="utf-8"))
    vocabularies: dict[str, VocabularyRows] = {}

    def restored(value: Any) -> Any:
        match value:
            case {"vocabulary": str() as table}:
                if table not in vocabularies:
                    frame = pl.read_parquet(vocabulary_file(folder, table), glob=False)
                    vocabularies[table] = VocabularyRows(frame["value"], frame["count"])
                return vocabularies[table]
            case {"hash": int() as buckets}:
                return HashedRows(buckets)
            case {"dtype": str() as dtype}:
                return _TYPES[dtype]
            case {"frame": str() as name}:
                return pl.read_parquet(vocabulary_file(folder, name), glob=False)
            case dict():
                return {key: restored(inner) for key, inner in value.items()}
            case list():
                return tuple(restored(inner) for inner in value)
        return value

    return FittedSpec(
        {
            name: KINDS[state.pop("fitted")](**{key: restored(value) for key, value in state.items()})
            for name, state in states.items()
        }
    )


def vocabulary_file(folder: Path, table: str) -> Path:
    """Where the vocabulary of a table lies."""
    return folder / "vocabularies" / f"{quote(table, safe='')}.parquet"
