"""Sequences built from the log itself: a slow recomputation agrees, and nothing later shows."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recdistill.data.encode import encode
from recdistill.data.log import open_log, raw_batches
from recdistill.errors import LogError, SpecError
from recdistill.spec.features import FeatureSpec
from recdistill.spec.load import parse_feature_spec

SPEC = {
    "row_id": "key",
    "time": "now",
    "split": {"column": "part", "train": [0, 0], "valid": [1, 1], "test": [2, 2]},
    "serving": {
        "item": {"type": "id", "min_count": 1},
        "clicked": {
            "type": "sequence", "column": "item", "vocabulary": "item", "max_length": 3,
            "past": {"keys": "user", "where": {"click": 1}, "gaps": True},
        },
    },
    "post_event": {"click": "binary"},
}  # fmt: skip


def frame(rows: int = 600, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    user = pl.Series(rng.integers(0, 25, rows)).replace(7, None)
    return pl.DataFrame(
        {
            "key": np.arange(rows), "user": user, "item": rng.integers(0, 40, rows),
            "now": rng.integers(0, rows // 3, rows), "click": rng.integers(0, 2, rows),
            "part": np.repeat([0, 1, 2], [rows - 200, 100, 100]),
        }
    )  # fmt: skip


def slow(log: pl.DataFrame, longest: int = 3) -> tuple[list[list[int]], list[list[int]]]:
    """The items and times of each row's past, row by row."""
    rows = log.to_dicts()
    items, times = [], []
    for row in rows:
        before = [r for r in rows if r["user"] == row["user"] is not None and r["now"] < row["now"] and r["click"] == 1]
        before.sort(key=lambda r: r["now"])
        items.append([r["item"] for r in before][-longest:])
        times.append([r["now"] for r in before][-longest:])
    return items, times


def built(log: pl.DataFrame, folder: Path, spec: dict = SPEC, where: dict | None = None) -> pl.DataFrame:
    folder.mkdir(exist_ok=True)
    log.write_parquet(folder / "log.parquet")
    return open_log(FeatureSpec.model_validate(spec), str(folder / "log.parquet"), where).collect()


def test_a_slow_recomputation_agrees(tmp_path: Path) -> None:
    log = frame()
    found, (items, times) = built(log, tmp_path), slow(log)
    assert found["clicked"].to_list() == items
    assert found["clicked/times"].to_list() == times
    assert 0 < sum(map(len, items)) < 3 * len(log)


def test_nothing_later_shows(tmp_path: Path) -> None:
    log, cut = frame(), 120
    changed = log.with_columns(
        item=pl.when(pl.col("now") >= cut).then(99).otherwise("item"),
        click=pl.when(pl.col("now") >= cut).then(1 - pl.col("click")).otherwise("click"),
        user=pl.when(pl.col("now") > cut).then(1).otherwise("user"),
    )
    early = log["now"] <= cut
    first, second = built(log, tmp_path / "a"), built(changed, tmp_path / "b")
    assert first.filter(early)["clicked"].to_list() == second.filter(early)["clicked"].to_list()
    assert first["clicked"].to_list() != second["clicked"].to_list()


def test_rows_that_a_job_leaves_out_are_still_somebodys_past(tmp_path: Path) -> None:
    log = frame()
    found = built(log, tmp_path, where={"click": 0})
    expected = [items for items, click in zip(slow(log)[0], log["click"], strict=True) if click == 0]
    assert found["clicked"].to_list() == expected


def test_encoding_and_the_callers_of_the_artefact_receive_the_same_lists(tmp_path: Path) -> None:
    log = frame()
    log.write_parquet(tmp_path / "log.parquet")
    spec = FeatureSpec.model_validate(SPEC)
    encoded = encode(spec, str(tmp_path / "log.parquet"), tmp_path / "encoded")
    rows = encoded.fitted.columns["item"].rows
    number = {value: 2 + i for i, value in enumerate(rows.values.to_list())}
    test = encoded.view("test", "serving").collect()
    items = slow(log)[0][-100:]
    assert test["clicked"].to_list() == [[number.get(item, 1) for item in row] for row in items]
    wanted = ["item", "clicked", "clicked/times", "now"]
    raw = pl.from_arrow(next(raw_batches(spec, str(tmp_path / "log.parquet"), {}, "test", wanted, 1000)))
    assert raw["clicked"].to_list() == items
    gaps = [
        [2 + (now - t).bit_length() for t in row] for now, row in zip(raw["now"], raw["clicked/times"], strict=True)
    ]
    assert test["clicked/gaps"].to_list() == gaps


def test_a_log_that_has_the_list_is_taken_at_its_word(tmp_path: Path) -> None:
    log = frame().with_columns(pl.Series("clicked", [[5]] * 600), pl.Series("clicked/times", [[0]] * 600))
    assert built(log.drop("user"), tmp_path)["clicked"].to_list() == [[5]] * 600


def test_what_cannot_be_built_is_said(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"clicked.past: a sequence needs to know which rows are past; add `time"):
        parse_feature_spec({**SPEC, "time": None}, "spec")
    with pytest.raises(LogError, match="'user'"):
        built(frame().drop("user"), tmp_path)
    sequence = {**SPEC["serving"]["clicked"], "separator": ","}
    with pytest.raises(SpecError, match="`past` makes the lists"):
        parse_feature_spec({**SPEC, "serving": {**SPEC["serving"], "clicked": sequence}}, "spec")
