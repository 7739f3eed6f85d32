"""A log whose raw columns are of other types than those of training is refused, whoever scores it."""

from pathlib import Path

import polars as pl
import pytest

from tests.conftest import Small
from tests.runs.conftest import Command

CHANGES = {
    "user_id": (pl.col("user_id").cast(pl.String), "'user_id': the student takes integers, found"),
    "price": (pl.lit("cheap"), "'price': the student takes floats, found"),
}


@pytest.mark.parametrize("column", CHANGES)
@pytest.mark.parametrize("source", [".", "student"])
def test_scores_of_other_types_are_refused(
    source: str, column: str, run: Path, small: Small, command: Command, tmp_path: Path
) -> None:
    change, message = CHANGES[column]
    log, out = tmp_path / "log.parquet", tmp_path / "scores.parquet"
    pl.read_parquet(small.log).head(50).with_columns(change.alias(column)).write_parquet(log)
    status, _, err = command("score", run / source, log, out)
    assert status == 2 and message in err and str(log) in err and "cast the columns in the log" in err
    assert not out.exists()


@pytest.mark.parametrize("option", [[], ["--items", "ITEMS"]])
def test_lists_of_other_types_or_of_nobody_are_refused(
    option: list[str], ranked: Path, splits: list[Path], command: Command, tmp_path: Path
) -> None:
    """Of users, or of other items."""
    column, file, out = "item_id" if option else "user_id", tmp_path / "rows.parquet", tmp_path / "top.parquet"
    words = ["score", ranked, splits[2] if option else file, out, "--top", 3]
    words += [file if word == "ITEMS" else word for word in option]
    rows = pl.read_parquet(splits[2])
    rows.cast({column: pl.String}).write_parquet(file)
    status, _, err = command(*words)
    assert status == 2 and f"'{column}': the student takes integers, found" in err
    rows.head(0).write_parquet(file)
    status, _, err = command(*words)
    assert status == 2 and f"no row has a value in '{column}'" in err
    assert not out.exists()


def test_an_artefact_whose_columns_are_absent_asks_for_the_spec(
    run: Path, small: Small, command: Command, tmp_path: Path
) -> None:
    log, out = tmp_path / "log.parquet", tmp_path / "scores.parquet"
    pl.read_parquet(small.log).drop("price").write_parquet(log)
    status, _, err = command("score", run / "student", log, out)
    assert status == 2 and "lacks columns that the artefact takes: 'price'" in err and "--spec" in err
