"""In which types the files of a log are read, and what their folders say."""

from datetime import date
from decimal import Decimal
from itertools import pairwise

import polars as pl
import pytest

from recdistill.data.encode import fingerprint_of
from recdistill.data.files import WIDTHS, scan
from recdistill.data.log import open_log
from recdistill.spec.features import FeatureSpec
from tests.data.logs import write

SPEC = FeatureSpec.model_validate({"serving": {"a": "categorical"}})


@pytest.mark.parametrize("turned", [False, True], ids=["narrow first", "wide first"])
@pytest.mark.parametrize(("narrow", "wide"), [pair for kind in WIDTHS for pair in pairwise(kind)], ids=str)
def test_files_of_several_widths_are_read_at_the_widest(tmp_path, narrow, wide, turned):
    ends = [1.5, 1e30] if wide.is_float() else pl.select(low=wide.min(), high=wide.max()).row(0)
    parts = [pl.Series([1, 2], dtype=narrow), pl.Series(ends, dtype=wide)]
    for i, part in enumerate(reversed(parts) if turned else parts):
        write({"a": part, "b": [i, i]}, tmp_path / "log" / f"{i}.parquet")
    found = open_log(SPEC, str(tmp_path / "log")).collect()["a"]
    assert found.dtype == wide and sorted(found) == sorted([*parts[0], *parts[1]])


def test_widths_of_columns_that_nobody_needs_do_not_matter(tmp_path):
    write({"a": [1], "b": [1]}, tmp_path / "log" / "1.parquet")
    write({"a": [2], "b": ["x"]}, tmp_path / "log" / "2.parquet")
    assert open_log(SPEC, str(tmp_path / "log")).collect()["a"].to_list() == [1, 2]


def test_decimals_are_floats_and_arrays_are_lists(tmp_path):
    columns = {
        "price": pl.Series([Decimal("1.10"), None], dtype=pl.Decimal(9, 2)),
        "key": pl.Series([Decimal(2**53 + 1), Decimal(1)], dtype=pl.Decimal(38, 0)),
        "prices": pl.Series([[Decimal("0.3")], []], dtype=pl.List(pl.Decimal(9, 2))),
        "pair": pl.Series([[1, 2], None], dtype=pl.Array(pl.Int32, 2)),
    }
    found = scan(write(columns, tmp_path / "log.parquet")).collect()
    assert found.dtypes == [pl.Float64, pl.Int64, pl.List(pl.Float64), pl.List(pl.Int32)]
    assert found.to_dict(as_series=False) == {
        "price": [1.1, None], "key": [2**53 + 1, 1], "prices": [[0.3], []], "pair": [[1, 2], None],
    }  # fmt: skip


@pytest.fixture
def partitioned(tmp_path):
    """A log of two days in folders, which itself lies in a folder that looks like a partition."""
    root = tmp_path / "user=7" / "log"
    for day, zone in (("2024-01-01", 1), ("2024-01-02", 2)):
        write({"a": [zone, zone]}, root / f"day={day}" / f"zone={zone}" / "part.parquet")
    return root


def test_folders_give_their_rows_a_column(partitioned):
    found = scan(str(partitioned)).collect()
    assert found.columns == ["a", "day", "zone"]
    assert found["day"].to_list() == [date(2024, 1, 1)] * 2 + [date(2024, 1, 2)] * 2
    assert found["zone"].to_list() == found["a"].to_list() == [1, 1, 2, 2]
    assert scan(str(partitioned / "day=*" / "**" / "*.parquet")).collect().equals(found)
    assert scan(str(partitioned / "day=2024-01-01")).collect().columns == ["a", "zone"]


def test_what_the_files_hold_is_believed_before_their_folders(partitioned):
    for file in partitioned.rglob("*.parquet"):
        pl.read_parquet(file, hive_partitioning=False).with_columns(zone=0, user=1).write_parquet(file)
    found = scan(str(partitioned)).collect()
    assert found.columns == ["a", "zone", "user"]
    assert found["zone"].to_list() == [0] * 4 and found["user"].to_list() == [1] * 4


def test_a_folder_of_another_name_is_another_log(partitioned):
    def fingerprint():
        return fingerprint_of(SPEC, str(partitioned), {}, ("train",))

    before = fingerprint()
    (partitioned / "day=2024-01-02").rename(partitioned / "day=2024-01-03")
    assert fingerprint() != before
