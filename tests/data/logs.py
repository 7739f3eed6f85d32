"""Small raw logs and specs for the tests of the data layer."""

import numpy as np
import polars as pl

from recdistill.data.encode import encode
from recdistill.spec.features import FeatureSpec

COLUMNS = {
    "time": "time_ms",
    "row_id": ["key"],
    "group": "user",
    "serving": {
        "user": {"type": "id"},
        "city": "categorical",
        "tags": {"type": "list", "max_length": 3},
        "words": {"type": "list", "separator": " ", "hash": 11},
        "price": {"type": "numeric", "log": True},
        "price_band": {"type": "numeric", "column": "price", "buckets": 4},
    },
    "post_event": {
        "click": "binary",
        "buy": "binary",
        "dwell_ms": {"type": "numeric"},
        "seen": {"type": "list", "vocabulary": "tags"},
    },
}


def spec(**values):
    """The spec above with some of its keys replaced."""
    made = FeatureSpec.model_validate({**COLUMNS, **values})
    assert made.problems() == []
    return made


def one_column(column, dtype_of_label="binary", **values):
    """A spec with one serving column ``x`` and the label ``y``, in the order of ``t``."""
    return FeatureSpec.model_validate(
        {"time": "t", "serving": {"x": column}, "post_event": {"y": dtype_of_label}, **values}
    )


def raw(rows, seed=0):
    """A log that the spec describes, with nulls, empty lists and values of all frequencies."""
    rng = np.random.default_rng(seed)
    lists = [rng.integers(0, 9, n).tolist() if n < 6 else None for n in rng.integers(0, 7, rows)]
    words = [" ".join(rng.choice(["red", "blue", "ü", ""], n)) for n in rng.integers(0, 4, rows)]
    return pl.DataFrame(
        {
            "key": np.arange(rows) * 7 + 3,
            "time_ms": np.arange(rows) * 10,
            "user": rng.integers(0, max(2, rows // 4), rows),
            "city": pl.Series(rng.choice(["Lima", "Oslo", "日本", ""], rows)),
            "tags": pl.Series(lists, dtype=pl.List(pl.Int64)),
            "words": words,
            "price": pl.Series(np.round(np.exp(rng.normal(3, 1, rows)), 2)).set(
                pl.Series(rng.random(rows) < 0.1), None
            ),
            "click": pl.Series(rng.integers(0, 2, rows), dtype=pl.Int8),
            "buy": pl.Series(rng.integers(0, 2, rows), dtype=pl.Int8).set(pl.Series(rng.random(rows) < 0.3), None),
            "dwell_ms": rng.exponential(1000, rows),
            "seen": pl.Series([[int(n)] * int(n) for n in rng.integers(0, 4, rows)], dtype=pl.List(pl.Int64)),
        }
    )


def write(frame, path):
    """The path of a parquet file with the rows, as a text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(frame).write_parquet(path)
    return str(path)


def encoded(folder, rows=200, seed=0, frame=None, **values):
    """An encoded log of the spec above."""
    path = write(raw(rows, seed) if frame is None else frame, folder / "raw" / "log.parquet")
    return encode(spec(**values), path, folder / "encoded")
