"""Day 2 after day 1: values keep their rows, tables gain rows, and training goes on."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recdistill.data.encode import encode
from recdistill.data.encoded import EncodedLog
from recdistill.errors import LogError
from recdistill.spec.features import FeatureSpec

SPEC: dict[str, Any] = {
    "split": {"column": "part", "train": [0, 0], "valid": [1, 1], "test": [2, 2]},
    "time": "now",
    "serving": {
        "item": {"type": "id", "min_count": 2},
        "seen": {"type": "sequence", "vocabulary": "item"},
        "city": {"type": "categorical"},
        "hashed": {"type": "categorical", "column": "city", "hash": 10},
        "price": {"type": "numeric"},
        "band": {"type": "numeric", "column": "price", "buckets": 4},
        "views": {"type": "history", "keys": "item"},
    },
    "post_event": {"y": "binary"},
}


def day(folder: Path, number: int, spec: dict[str, Any] = SPEC, extends: Path | None = None) -> EncodedLog:
    rng = np.random.default_rng(number)
    rows, first = 400, 40 * (number - 1)
    frame = pl.DataFrame(
        {
            "item": rng.integers(first, first + 60, rows), "seen": rng.integers(first, first + 60, (rows, 3)).tolist(),
            "city": [f"c{k}" for k in rng.integers(number, number + 5, rows)], "now": np.arange(rows) + 1000 * number,
            "price": rng.normal(10 * number, number, rows), "y": rng.integers(0, 2, rows),
            "part": np.repeat([0, 1, 2], [300, 50, 50]),
        }
    ).with_columns(pl.col("seen").cast(pl.List(pl.Int64)))  # fmt: skip
    path = folder / f"day{number}.parquet"
    frame.write_parquet(path)
    out = folder / f"encoded{number}{'' if extends is None else 'extended'}"
    return encode(FeatureSpec.model_validate(spec), str(path), out, extends=extends)


def test_values_keep_their_rows_and_new_ones_follow(tmp_path: Path) -> None:
    first = day(tmp_path, 1)
    second, fresh = day(tmp_path, 2, extends=first.folder), day(tmp_path, 2)
    for name in ("item", "city"):
        old, new = (log.fitted.columns[name].rows for log in (first, second))
        assert new.values[: len(old.values)].to_list() == old.values.to_list()
        added = set(new.values[len(old.values) :].to_list())
        assert added == set(fresh.fitted.columns[name].rows.values.to_list()) - set(old.values.to_list()) != set()
        assert len(set(new.values.to_list())) == len(new.values)
        counts = dict(zip(new.values, new.counts, strict=True))
        for log in (first, fresh):
            rows = log.fitted.columns[name].rows
            for value, count in zip(rows.values, rows.counts, strict=True):
                counts[value] -= count
        assert set(counts.values()) == {0}
    assert second.fitted.tables["item"] > first.fitted.tables["item"]
    assert second.fitted.columns["seen"].rows is second.fitted.columns["item"].rows or (
        second.fitted.columns["seen"].rows.values.equals(second.fitted.columns["item"].rows.values)
    )
    for name in ("price", "band"):
        assert vars(second.fitted.columns[name]) == vars(first.fitted.columns[name])
    assert second.fitted.columns["views"].scale == first.fitted.columns["views"].scale
    assert second.fitted.columns["views"].snapshot.equals(fresh.fitted.columns["views"].snapshot)


def test_known_values_are_encoded_as_on_day_one(tmp_path: Path) -> None:
    first = day(tmp_path, 1)
    again = day(tmp_path, 1, extends=first.folder)
    for name in ("item", "seen", "city", "price", "band"):
        mine, theirs = (log.view("test", "serving").select(name).collect() for log in (again, first))
        assert mine.equals(theirs), name


def test_extending_is_repeatable_and_part_of_the_fingerprint(tmp_path: Path) -> None:
    first = day(tmp_path, 1)
    plain, once, twice = (
        day(tmp_path, 2),
        day(tmp_path, 2, extends=first.folder),
        day(tmp_path, 2, extends=first.folder),
    )
    assert once.fingerprint == twice.fingerprint != plain.fingerprint


def test_what_cannot_be_extended_is_refused(tmp_path: Path) -> None:
    first = day(tmp_path, 1)
    other = {**SPEC, "serving": {**SPEC["serving"], "price": {"type": "numeric", "buckets": 3}}}
    with pytest.raises(LogError, match="price: is encoded differently in the earlier log"):
        day(tmp_path, 2, other, extends=first.folder)
    with pytest.raises(LogError, match="holds no fitted columns"):
        day(tmp_path, 2, extends=tmp_path)
