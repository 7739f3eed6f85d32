"""Raw columns of other types than those of training are told before they are read as something else."""

from datetime import date, datetime
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from recdistill.data.transforms.raw import keyed_by_text, unit_of
from recdistill.errors import LogError
from recdistill.export import artefact, bare

TYPES: dict[str, pl.DataType] = {
    "text": pl.String(), "float": pl.Float64(), "integer": pl.Int64(), "flag": pl.Boolean(), "wide": pl.UInt64(),
    "day": pl.Date(), "ms": pl.Datetime("ms"), "us": pl.Datetime("us"),
}  # fmt: skip
NOW = [datetime(2020, 1, 2, 3, 4, 5, 678901), None]
SERIES = {
    "text": pl.Series(["1", None]),
    "category": pl.Series(["1", None], dtype=pl.Categorical),
    "float": pl.Series([1.5, None]),
    "integer": pl.Series([1, None], dtype=pl.Int32),
    "flag": pl.Series([True, None]),
    "day": pl.Series([date(2020, 1, 2), None]),
    "ms": pl.Series(NOW, dtype=pl.Datetime("ms")),
    "us": pl.Series(NOW, dtype=pl.Datetime("us")),
    "zoned": pl.Series(NOW, dtype=pl.Datetime("us", "UTC")),
    "nothing": pl.Series([None, None]),
    "bytes": pl.Series([b"1", None]),
}
SUITS = {
    "text": {"text", "category", "nothing"},
    "float": {"float", "integer", "flag", "nothing"},
    "integer": {"integer", "flag", "nothing"},
    "flag": {"integer", "flag", "nothing"},
    "wide": {"integer", "flag", "nothing"},
    "day": {"day", "nothing"},
    "ms": {"day", "ms", "nothing"},
    "us": {"day", "ms", "us", "zoned", "nothing"},
}


def entry(name: str, *, is_list: bool) -> dict[str, Any]:
    """What a manifest says of a raw column of that type."""
    dtype = TYPES[name]
    kind = "text" if keyed_by_text(dtype) else "float" if dtype.is_float() else "integer"
    unit = {} if unit_of(dtype) is None else {"unit": unit_of(dtype)}
    return {"name": "x", "kind": kind, "list": is_list, **unit}


@pytest.mark.parametrize("is_list", [False, True])
@pytest.mark.parametrize("trained", TYPES)
def test_what_suits_can_be_read_and_nothing_else_passes(trained: str, is_list: bool) -> None:
    about = entry(trained, is_list=is_list)
    for given, series in SERIES.items():
        values = series.implode() if is_list else series
        table = pl.DataFrame({"x": values}).to_arrow()
        assert (bare.misfits(table.schema, [about]) == []) == (given in SUITS[trained]), given
        if given in SUITS[trained]:
            numbers, texts, lengths = bare.tensors(table, [about])
            assert len(numbers.get("x", texts.get("x"))) == 2 and ("x" in lengths) == is_list
        other = pl.DataFrame({"x": series if is_list else series.implode()}).to_arrow()
        assert bare.misfits(other.schema, [about])


def test_the_message_names_log_column_expectation_finding_and_remedy() -> None:
    manifest = {"inputs": [entry("text", is_list=True), {**entry("us", is_list=False), "name": "at"}]}
    table = pa.table({"x": pa.array([1, 2]), "at": pa.array([1, 2])})
    with pytest.raises(LogError) as told:
        artefact.check_types(manifest, table, "new.parquet")
    assert str(told.value) == (
        "new.parquet: 'x': the student takes lists of texts, found int64; 'at': the student takes times in units of "
        "'us', found int64; cast the columns in the log"
    )
    artefact.check_types(manifest, table.drop_columns(["x", "at"]), "new.parquet")  # what is absent is missing
