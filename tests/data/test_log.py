"""Raw logs: which files, which columns, which rows, which split, and who a row is."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recdistill.data.files import log_files, scan
from recdistill.data.log import LEFT_OUT, ROW_ID, SPLIT, open_log, raw_batches, with_split
from recdistill.errors import LogError
from recdistill.spec.features import FeatureSpec
from tests.data.logs import write
from tests.oracles import encoding as oracle


def spec_of(**values):
    made = FeatureSpec.model_validate({"serving": {"a": "categorical"}, **values})
    assert made.problems() == []
    return made


def opened(spec, path, where=None):
    return open_log(spec, path, where).collect()


@pytest.fixture
def log(tmp_path):
    return write({"a": [3, 1, 2], "b": ["x", "y", None], "t": [1, 2, 3]}, tmp_path / "log.parquet")


# Files


def test_a_log_is_a_file_a_folder_or_a_pattern(tmp_path):
    for name in ("b/2.parquet", "a/1.parquet", "b/1.parquet", "b/1.csv", "c"):
        write({"a": [1]}, tmp_path / "log" / name)
    folder = tmp_path / "log"

    def found(path):
        return [file.relative_to(folder).as_posix() for file in log_files(str(path))]

    assert found(folder / "b" / "2.parquet") == ["b/2.parquet"]
    assert found(folder) == ["a/1.parquet", "b/1.parquet", "b/2.parquet"]
    assert found(folder / "*" / "1.parquet") == ["a/1.parquet", "b/1.parquet"]
    assert found(folder / "**" / "2.*") == ["b/2.parquet"]
    assert found(folder / "c") == ["c"]


def test_a_folder_that_is_called_like_a_file_is_read_by_its_files_alone(tmp_path):
    write({"a": [1]}, tmp_path / "log" / "day.parquet" / "part.parquet")
    assert [file.name for file in log_files(str(tmp_path / "log"))] == ["part.parquet"]
    with pytest.raises(LogError, match="no parquet file here"):
        log_files(str(tmp_path / "log" / "day*"))


@pytest.mark.parametrize("name", ["absent.parquet", "*.parquet", "empty"])
def test_a_log_without_files_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(LogError, match="no parquet file here; give a file, a folder"):
        log_files(str(tmp_path / name))


@pytest.mark.parametrize(
    "name", ["log[1].parquet", "log {a}.parquet", "лог*.parquet", "a%20b.parquet", "x=1/log.parquet"]
)
def test_a_file_with_an_odd_name_is_read(tmp_path, name):
    path = write({"a": [1, 2]}, tmp_path / name)
    assert opened(spec_of(), path)["a"].to_list() == [1, 2]


def test_files_follow_each_other_in_the_order_of_their_names(tmp_path):
    for i in (2, 0, 1):
        write({"a": [10 * i, 10 * i + 1]}, tmp_path / "log" / f"part-{i}.parquet")
    assert opened(spec_of(), str(tmp_path / "log"))["a"].to_list() == [0, 1, 10, 11, 20, 21]


def test_a_file_that_is_no_parquet_is_refused(tmp_path):
    (tmp_path / "log.parquet").write_text("a,b\n1,2")
    with pytest.raises(LogError, match="cannot be read as parquet"):
        scan(str(tmp_path / "log.parquet"))


DIFFERENT = {
    "lacks a column": ({"b": [1]}, "'a' is Int64 in 1.parquet, this file lacks it"),
    "holds it differently": ({"a": ["1"], "b": [1]}, "'a' is Int64 in 1.parquet, this file holds it as String"),
    "holds floats": ({"a": [0.5]}, "this file holds it as Float64; write all files alike"),
    "holds it unsigned": (
        {"a": pl.Series([1], dtype=pl.UInt64)},
        "this file holds it as UInt64; write all files alike",
    ),
}


@pytest.mark.parametrize(("second", "message"), DIFFERENT.values(), ids=DIFFERENT)
def test_files_that_differ_in_a_needed_column_are_refused(tmp_path, second, message):
    write({"a": [1], "b": [1]}, tmp_path / "log" / "1.parquet")
    write(second, tmp_path / "log" / "2.parquet")
    with pytest.raises(LogError) as caught:
        open_log(spec_of(), str(tmp_path / "log"))
    assert message in str(caught.value)


def test_a_later_file_that_is_no_parquet_is_named(tmp_path):
    write({"a": [1]}, tmp_path / "log" / "1.parquet")
    (tmp_path / "log" / "2.parquet").write_text("no")
    with pytest.raises(LogError, match=r"2\.parquet: cannot be read as parquet"):
        open_log(spec_of(), str(tmp_path / "log"))


def test_files_may_differ_in_columns_that_nobody_needs(tmp_path):
    write({"a": [1], "b": [1]}, tmp_path / "log" / "1.parquet")
    write({"c": ["x"], "a": [2]}, tmp_path / "log" / "2.parquet")
    assert opened(spec_of(), str(tmp_path / "log"))["a"].to_list() == [1, 2]


# Columns


def test_only_the_columns_that_spec_and_filter_need_are_opened(log):
    assert opened(spec_of(), log).columns == [ROW_ID, "a"]
    assert opened(spec_of(time="t"), log, {"b": "x"}).columns == [ROW_ID, "t", "b", "a"]


def test_every_role_is_a_needed_column(tmp_path):
    roles = ("time", "group", "weight", "scenario")
    path = write({name: [1] for name in ("a", "k", "r", "raw", *roles)}, tmp_path / "log.parquet")
    made = spec_of(
        **{role: role for role in roles},
        row_id=["k"],
        reference=["r"],
        serving={"a": "id", "x": {"type": "id", "column": "raw"}},
        split={"hash": {"key": "k"}},
    )
    assert set(opened(made, path).columns) == {ROW_ID, "a", "k", "r", "raw", *roles}


def test_absent_columns_are_all_named_with_their_neighbours(log):
    made = spec_of(serving={"aa": "id", "zzz": "id", "yyy": "id"}, group="b")
    with pytest.raises(LogError) as caught:
        open_log(made, log)
    assert str(caught.value).endswith("has: 'aa' (did you mean 'a'?), 'zzz', 'yyy'; known: a, b, t")


# Side tables


def joined(tmp_path, log, sides, where=None, **values):
    """The opened log with side tables, given as ``{name: (columns, join)}``."""
    join = {write(columns, tmp_path / f"{name}.parquet"): options for name, (columns, options) in sides.items()}
    return opened(spec_of(join=join, **values), write(log, tmp_path / "log.parquet"), where)


SIDE = ({"k": [1, 2, 3], "price": [10, 20, None], "stat": [7, 8, 9]}, {"on": "k"})
PRICED = {"serving": {"price": "categorical"}}


def test_a_side_table_adds_its_columns_by_key_in_the_order_of_the_log(tmp_path):
    found = joined(tmp_path, {"k": [3, 1, 4, 1, None]}, {"side": SIDE}, **PRICED)
    assert found["price"].to_list() == [None, 10, None, 10, None]
    assert found[ROW_ID].to_list() == [0, 1, 2, 3, 4]


def test_a_join_on_two_keys_needs_both_to_match(tmp_path):
    side = ({"k": [1, 1, 2], "l": ["x", "y", "x"], "price": [1, 2, 3]}, {"on": ["k", "l"]})
    found = joined(tmp_path, {"k": [1, 2, 1], "l": ["y", "y", "x"]}, {"side": side}, **PRICED)
    assert found["price"].to_list() == [2, None, 1]


def test_dropped_and_not_kept_columns_do_not_exist(tmp_path):
    log = {"k": [1], "stat": [0]}
    for options in ({"drop": ["stat*"]}, {"drop": ["st?t"]}, {"keep": ["price"]}, {"keep": ["p*"]}):
        found = joined(
            tmp_path, log, {"side": (SIDE[0], {"on": "k", **options})}, serving={"price": "id", "stat": "id"}
        )
        assert found.select("price", "stat").row(0) == (10, 0)
    with pytest.raises(LogError, match="'price'; known: k, stat"):
        joined(tmp_path, log, {"side": (SIDE[0], {"on": "k", "drop": ["*"]})}, **PRICED)
    with pytest.raises(LogError, match="'price'"):
        joined(tmp_path, log, {"side": (SIDE[0], {"on": "k", "keep": ["p*"], "drop": ["*e"]})}, **PRICED)


def test_a_needed_column_of_two_places_is_ambiguous(tmp_path):
    with pytest.raises(LogError, match=r"'price' exists in .*log\.parquet already; name it in `drop`"):
        joined(tmp_path, {"k": [1], "price": [1]}, {"side": SIDE}, **PRICED)
    with pytest.raises(LogError, match=r"join .*other\.parquet: 'price' exists in .*side\.parquet already"):
        joined(tmp_path, {"k": [1]}, {"side": SIDE, "other": SIDE}, **PRICED)


def test_a_column_of_two_places_that_nobody_needs_is_no_problem(tmp_path):
    assert joined(tmp_path, {"k": [1], "stat": [0]}, {"side": SIDE}, **PRICED)["price"].to_list() == [10]


def test_a_side_table_with_a_key_twice_is_refused(tmp_path):
    side = ({"k": [1, 2, 2, 1, 3], "price": [1, 2, 3, 4, 5]}, {"on": "k"})
    with pytest.raises(LogError, match=r"2 keys of \['k'\] occur several times; a side table has one row per key"):
        joined(tmp_path, {"k": [1]}, {"side": side}, **PRICED)


def test_an_absent_key_is_named_with_its_neighbour(tmp_path):
    with pytest.raises(LogError, match="no key column 'kk'; did you mean 'k'"):
        joined(tmp_path, {"kk": [1]}, {"side": (SIDE[0], {"on": "kk"})}, **PRICED)
    with pytest.raises(LogError, match=r"log\.parquet has no key column 'k'; did you mean 'kk'"):
        joined(tmp_path, {"kk": [1]}, {"side": SIDE}, **PRICED)


@pytest.mark.parametrize(
    ("left", "right"), [(pl.Int32, pl.Int64), (pl.Int64, pl.Int8), (pl.UInt16, pl.Int64), (pl.Int8, pl.UInt64)]
)
def test_integer_keys_of_different_widths_match_by_value(tmp_path, left, right):
    side = ({"k": pl.Series([1, 2], dtype=right), "price": [10, 20]}, {"on": "k"})
    found = joined(tmp_path, {"k": pl.Series([2, 1, 3], dtype=left)}, {"side": side}, **PRICED)
    assert found["price"].to_list() == [20, 10, None]


def test_a_key_that_the_logs_type_cannot_hold_matches_no_row(tmp_path):
    side = ({"k": [1, 300, -200], "price": [10, 20, 30]}, {"on": "k"})
    found = joined(tmp_path, {"k": pl.Series([1, 44, 56, None], dtype=pl.Int8)}, {"side": side}, **PRICED)
    assert found["price"].to_list() == [10, None, None, None]


def test_keys_of_different_kinds_are_refused(tmp_path):
    with pytest.raises(LogError, match=r"'k' is String in .*log\.parquet but Int64 here; cast one of the files"):
        joined(tmp_path, {"k": ["1"]}, {"side": SIDE}, **PRICED)


def test_a_side_table_may_be_joined_by_a_key_of_an_earlier_one(tmp_path):
    items = ({"item": [1, 2], "author": [5, 6]}, {"on": "item"})
    authors = ({"author": [5, 6], "price": [50, 60]}, {"on": "author"})
    found = joined(tmp_path, {"item": [2, 1, 3]}, {"items": items, "authors": authors}, **PRICED)
    assert found["price"].to_list() == [60, 50, None]


def test_a_side_table_of_several_files_is_one_table(tmp_path):
    for i in (1, 2):
        write({"k": [i], "price": [10 * i]}, tmp_path / "side" / f"{i}.parquet")
    made = spec_of(join={str(tmp_path / "side"): {"on": "k"}}, **PRICED)
    assert opened(made, write({"k": [2, 1]}, tmp_path / "log.parquet"))["price"].to_list() == [20, 10]


def test_a_side_column_can_be_a_filter_a_role_or_part_of_the_row_id(tmp_path):
    found = joined(
        tmp_path, {"k": [1, 2, 3]}, {"side": SIDE}, where={"stat": [7, 9]}, row_id=["k", "stat"], group="stat", **PRICED
    )
    assert found["stat"].to_list() == [7, 9]
    assert found[ROW_ID].to_list() == [hashed(1, 7), hashed(3, 9)]


# Filters

FRAME = {
    "a": [0, 1, 2, 1, None],
    "b": ["x", "y", None, "", "x"],
    "f": [0.5, 1.0, 2.0, None, 1.0],
    "flag": [True, False, None, True, True],
    "day": [date(2022, 4, d) for d in (1, 2, 3, 4, 4)],
    "at": [datetime(2022, 4, d, 5) for d in (1, 2, 3, 4, 4)],
    "tiny": pl.Series([0, 1, 0, 1, 1], dtype=pl.Int8),
    "kind": pl.Series(["p", "q", "p", None, "q"], dtype=pl.Categorical),
}
WHERE = [
    ({}, [0, 1, 2, 3, 4]),
    ({"a": 1}, [1, 3]),
    ({"a": [1, 0]}, [0, 1, 3]),
    ({"a": [1], "b": "y"}, [1]),
    ({"a": None}, [4]),
    ({"a": [0, None]}, [0, 4]),
    ({"b": ["", None]}, [2, 3]),
    ({"b": []}, []),
    ({"b": "absent"}, []),
    ({"f": 1}, [1, 4]),
    ({"a": 1.0}, [1, 3]),
    ({"a": "1"}, [1, 3]),
    ({"flag": True}, [0, 3, 4]),
    ({"flag": 0}, [1]),
    ({"tiny": True}, [1, 3, 4]),
    ({"day": date(2022, 4, 4)}, [3, 4]),
    ({"day": "2022-04-04"}, [3, 4]),
    ({"day": [date(2022, 4, 1), date(2022, 4, 2)]}, [0, 1]),
    ({"at": datetime(2022, 4, 1, 5)}, [0]),
    ({"at": "2022-04-01T05:00:00"}, [0]),
    ({"kind": "q"}, [1, 4]),
    ({"kind": [None, "p"]}, [0, 2, 3]),
]


@pytest.mark.parametrize(("where", "rows"), WHERE, ids=str)
def test_a_filter_keeps_the_rows_that_hold_one_of_its_values(tmp_path, where, rows):
    path = write(FRAME, tmp_path / "log.parquet")
    assert opened(spec_of(), path, where)[ROW_ID].to_list() == rows


@pytest.mark.parametrize(
    "where",
    [
        {"a": "x"},
        {"a": 0.5},
        {"a": {"from": 1}},
        {"day": "soon"},
        {"tiny": 300},
        {"flag": "yes"},
        {"b": [1, "x"]},
        {"a": [[1]]},
    ],
    ids=str,
)
def test_a_filter_that_no_value_of_its_column_can_meet_is_refused(tmp_path, where):
    path = write(FRAME, tmp_path / "log.parquet")
    with pytest.raises(LogError, match=r"where: .* write values as the log holds them"):
        opened(spec_of(), path, where)


def test_a_filter_on_an_absent_column_is_refused(log):
    with pytest.raises(LogError, match=r"'bb' \(did you mean 'b'"):
        open_log(spec_of(), log, {"bb": 1})


# Row ids


def hashed(*values):
    """The id of a row with these key values."""
    total = 0
    for value in values:
        if isinstance(value, str):
            key = oracle.text_hash(value)
        else:
            key = oracle.splitmix64(-(2**63) if value is None else value)
        total = oracle.splitmix64(total ^ key)
    return total


def ids(tmp_path, frame, row_id, name="log"):
    return opened(spec_of(row_id=row_id, serving={"key": "id"}), write(frame, tmp_path / f"{name}.parquet"))[ROW_ID]


def test_without_key_columns_a_row_is_its_number_in_the_log_whatever_is_filtered(log):
    assert opened(spec_of(), log, {"b": ["y", None]})[ROW_ID].to_list() == [1, 2]


def test_a_row_id_is_the_hash_of_its_key_columns_in_turn(tmp_path):
    frame = {"key": [5, None, -1], "text": ["ü", None, ""]}
    assert ids(tmp_path, frame, ["key", "text"]).to_list() == [hashed(5, "ü"), hashed(None, ""), hashed(-1, "")]
    assert ids(tmp_path, frame, ["text", "key"]).to_list()[0] == hashed("ü", 5)


def test_row_ids_follow_their_rows_when_the_log_is_reordered(tmp_path):
    frame = pl.DataFrame(
        {"key": np.arange(50) % 7, "text": pl.Series([f"t{i}" for i in range(50)], dtype=pl.Categorical)}
    )
    order = np.random.default_rng(0).permutation(50)
    first = ids(tmp_path, frame, ["key", "text"])
    second = ids(tmp_path, frame[order], ["key", "text"], "reordered")
    assert first.gather(order).to_list() == second.to_list()
    assert first.n_unique() == 50


@pytest.mark.parametrize("dtype", [pl.Int8, pl.UInt16, pl.UInt64, pl.Float32, pl.Float64])
def test_the_type_of_an_integer_key_does_not_matter(tmp_path, dtype):
    assert ids(tmp_path, {"key": pl.Series([1, 2, 100], dtype=dtype)}, ["key"]).to_list() == [
        hashed(k) for k in (1, 2, 100)
    ]


def test_fractions_large_unsigned_keys_and_times_tell_rows_apart(tmp_path):
    keys = {
        "fraction": pl.Series([0.5, 0.25, 0.75, None]),
        "unsigned": pl.Series([2**63, 2**63 + 1, 2**64 - 1, 0], dtype=pl.UInt64),
        "time": pl.Series([datetime(2022, 1, 1, 0, 0, s) for s in range(4)]),
        "day": pl.Series([date(2022, 1, d + 1) for d in range(4)]),
    }
    for name, key in keys.items():
        assert ids(tmp_path, {"key": key}, ["key"], name).n_unique() == 4


@pytest.mark.parametrize("values", [[[1]], [{"a": 1}], [b"x"], [None]], ids=["list", "struct", "bytes", "null"])
def test_a_key_column_that_cannot_be_hashed_is_refused(tmp_path, values):
    with pytest.raises(LogError, match="row_id 'key': expected integers, floats, texts or times"):
        ids(tmp_path, {"key": values}, ["key"])


# Splits


def split_of(frame, spec):
    """The split of each row."""
    return with_split(pl.DataFrame(frame).lazy(), spec).collect()[SPLIT].to_list()


def by_column(train, valid, test):
    return spec_of(split={"column": "c", "train": train, "valid": valid, "test": test})


DAYS = [date(2022, 4, 1) + timedelta(days=d) for d in range(6)]
BY_COLUMN = {
    "integers": ([0, 1, 2, 3, 4, 5], ([1, 2], [3, 3], [4, 4])),
    "floats": ([0.9, 1.0, 2.0, 3.0, 4.0, 4.1], ([1, 2], [3, 3], [4, 4])),
    "days": (DAYS, ([DAYS[1], DAYS[2]], [DAYS[3], DAYS[3]], [DAYS[4], DAYS[4]])),
    "days written as texts": (DAYS, (["2022-04-02", "2022-04-03"], ["2022-04-04"] * 2, ["2022-04-05"] * 2)),
    "texts": (["a", "b", "c", "d", "e", "f"], (["b", "c"], ["d", "d"], ["e", "e"])),
    "texts called like columns": (["a", "b", "c", "d", "e", "f"], (["b", "c"], ["d", "d"], ["e", "e"])),
    "texts that look like days": (
        [str(d) for d in DAYS],
        (["2022-04-02", "2022-04-03"], ["2022-04-04"] * 2, ["2022-04-05"] * 2),
    ),
    "hours": (
        [datetime(2022, 4, 1, h) for h in range(6)],
        tuple([datetime(2022, 4, 1, low), datetime(2022, 4, 1, high)] for low, high in ((1, 2), (3, 3), (4, 4))),
    ),
    "hours of whole days": (
        [datetime(2022, 4, d, 23, 59) for d in range(1, 7)],
        ([DAYS[1], DAYS[2]], [DAYS[3], DAYS[3]], [DAYS[4], DAYS[4]]),
    ),
}


@pytest.mark.parametrize(("column", "ranges"), BY_COLUMN.values(), ids=BY_COLUMN)
def test_a_split_by_column_takes_its_ranges_with_both_bounds(column, ranges):
    frame = {"c": column, **{name: [0] * 6 for name in "bcde" if name != "c"}}
    expected = [LEFT_OUT, "train", "train", "valid", "test", LEFT_OUT]
    assert split_of(frame, by_column(*ranges)) == expected


ZONED = {
    "without offsets, in the column's zone": ["2022-03-27T01:00:00", "2022-03-27T03:00:00", "2022-03-27T04:00:00"],
    "with offsets": ["2022-03-27T00:00:00Z", "2022-03-27T03:00:00+02:00", "2022-03-26T22:00:00-04:00"],
}


@pytest.mark.parametrize("parsed", [True, False], ids=["as YAML reads them", "as JSON writes them"])
@pytest.mark.parametrize("bounds", ZONED.values(), ids=ZONED)
def test_bounds_of_times_in_a_zone_are_instants(bounds, parsed):
    """Berlin goes from 2 to 3 o'clock in this night."""
    hours = pl.Series([datetime(2022, 3, 26, 23), *(datetime(2022, 3, 27, h) for h in range(4))])
    column = hours.dt.replace_time_zone("UTC").dt.convert_time_zone("Europe/Berlin")
    ranges = [[datetime.fromisoformat(b) if parsed else b] * 2 for b in bounds]
    assert split_of({"c": column}, by_column(*ranges)) == [LEFT_OUT, "train", "valid", "test", LEFT_OUT]


def test_times_without_a_zone_are_in_utc():
    hours = [datetime(2022, 3, 27, h) for h in range(3)]
    ranges = [[f"2022-03-27T0{h + 2}:00:00+02:00"] * 2 for h in range(3)]
    assert split_of({"c": hours}, by_column(*ranges)) == ["train", "valid", "test"]


def test_bounds_with_and_without_offsets_are_not_mixed():
    first, second = datetime(2022, 3, 27, tzinfo=UTC), datetime(2022, 3, 28)
    with pytest.raises(ValueError, match=r"several types .*datetime, datetime with an offset"):
        by_column([first] * 2, [second] * 2, [second] * 2)


def test_rows_without_a_value_of_the_split_column_are_left_out():
    assert split_of({"c": [None, 1]}, by_column([0, 1], [2, 2], [3, 3])) == [LEFT_OUT, "train"]


@pytest.mark.parametrize(
    ("column", "bounds"),
    [(["a"], [1, 2, 3]), ([1], ["a", "b", "c"]), (DAYS[:1], ["soon", "t", "u"]), (["a"], DAYS[:3]), ([[1]], [1, 2, 3])],
    ids=["number of a text", "text of a number", "no date", "date of a text", "list"],
)
def test_bounds_that_the_split_column_cannot_meet_are_refused(column, bounds):
    with pytest.raises(LogError, match=r"split: 'c' is .*; write the bounds as the log holds them"):
        split_of({"c": column}, by_column(*([b, b] for b in bounds)))


def test_a_split_by_time_cuts_off_the_latest_rows():
    order = np.random.default_rng(0).permutation(100)
    found = split_of({"t": order}, spec_of(time="t", split={"time": {"valid": 0.2, "test": 0.1}}))
    assert {name: sorted(int(t) for t, s in zip(order, found, strict=True) if s == name) for name in set(found)} == {
        "train": list(range(70)),
        "valid": list(range(70, 90)),
        "test": list(range(90, 100)),
    }


@settings(max_examples=50)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=60), st.sampled_from([0.1, 0.25, 0.4]))
def test_rows_of_one_instant_stay_together_and_splits_follow_each_other(times, share):
    found = split_of({"t": times}, spec_of(time="t", split={"time": {"valid": share, "test": share}}))
    order = {"train": 0, "valid": 1, "test": 2}
    pairs = sorted({(t, order[s]) for t, s in zip(times, found, strict=True)})
    assert len(pairs) == len(set(times))
    assert [s for _, s in pairs] == sorted(s for _, s in pairs)
    late = [t for t, s in zip(times, found, strict=True) if s == "test"]
    assert len(late) >= len(times) * share - 1
    assert sum(t > min(late) for t in late) <= len(times) * share  # the instant on the cut may bring more


TIMES = {
    "integers": list(range(20)),
    "floats": [t / 4 for t in range(20)],
    "days": [date(2022, 1, 1) + timedelta(days=t) for t in range(20)],
    "hours": [datetime(2022, 1, 1) + timedelta(hours=t) for t in range(20)],
    "durations": [timedelta(seconds=t) for t in range(20)],
}


@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
def test_time_may_be_numbers_dates_or_hours(times):
    assert split_of({"t": times}, spec_of(time="t")) == ["train"] * 16 + ["valid"] * 2 + ["test"] * 2


def test_a_time_that_is_text_is_refused():
    with pytest.raises(LogError, match="time: expected numbers, dates or times, found String in 't'"):
        split_of({"t": ["2022"]}, spec_of(time="t"))


@pytest.mark.parametrize("times", [[1, None, 3, None], [1.0, None, 3.0, float("nan")]])
def test_rows_without_a_time_belong_to_no_split_by_time(times):
    with pytest.raises(LogError, match=r"time: 2 rows have no 't', .*; fill them or take them out of the log, or"):
        split_of({"t": times}, spec_of(time="t"))


def test_a_log_without_rows_is_for_training():
    assert split_of({"t": pl.Series([], dtype=pl.Int64)}, spec_of(time="t")) == []


def test_the_default_split_is_by_time_where_there_is_one_and_by_row_elsewhere(tmp_path):
    path = write({"a": np.arange(3000), "t": np.arange(3000)[::-1]}, tmp_path / "log.parquet")
    timed, plain = spec_of(time="t"), spec_of()
    late = with_split(open_log(timed, path), timed).filter(pl.col(SPLIT) == "test").collect()["t"]
    assert (late.min(), late.len()) == (2700, 300)
    mixed = with_split(open_log(plain, path), plain).collect()
    shares = dict(mixed[SPLIT].value_counts(normalize=True).iter_rows())
    assert shares == {
        "train": pytest.approx(0.8, abs=0.03),
        "valid": pytest.approx(0.1, abs=0.02),
        "test": pytest.approx(0.1, abs=0.02),
    }
    assert mixed.filter(pl.col(SPLIT) == "test")["a"].mean() == pytest.approx(1500, abs=200)


@pytest.mark.parametrize("dtype", [pl.Int64, pl.UInt64, pl.Float64, pl.String, pl.Categorical])
def test_a_split_by_hash_keeps_the_rows_of_a_key_together_in_the_given_shares(dtype):
    keys = np.random.default_rng(0).integers(0, 2000, 8000)
    column = pl.Series(keys) if dtype != pl.Categorical else pl.Series([f"k{k}" for k in keys])
    frame = pl.DataFrame({"u": column.cast(dtype), "k": keys})
    made = spec_of(split={"hash": {"key": "u", "valid": 0.2, "test": 0.3}})
    found = with_split(frame.lazy(), made).collect()
    assert found.group_by("k").agg(pl.col(SPLIT).n_unique())[SPLIT].max() == 1
    per_key = found.unique("k")[SPLIT].value_counts(normalize=True)
    shares = dict(per_key.iter_rows())
    assert shares["valid"] == pytest.approx(0.2, abs=0.03)
    assert shares["test"] == pytest.approx(0.3, abs=0.035)
    reordered = with_split(frame.reverse().lazy(), made).collect()
    assert reordered.reverse()[SPLIT].to_list() == found[SPLIT].to_list()


def test_larger_shares_only_add_rows_to_the_test_split():
    frame = {"u": np.arange(2000)}
    small, large = (
        {u for u, s in enumerate(split_of(frame, spec_of(split={"hash": {"key": "u", "test": share}}))) if s == "test"}
        for share in (0.1, 0.3)
    )
    assert small < large


def test_a_hash_key_that_cannot_be_hashed_is_refused():
    with pytest.raises(LogError, match="split: the key 'u': expected integers"):
        split_of({"u": [[1]]}, spec_of(split={"hash": {"key": "u"}}))


# Raw batches


def batches(path, rows, split=None, where=None, columns=("a",), **values):
    return [b.to_pydict() for b in raw_batches(spec_of(**values), path, where or {}, split, list(columns), rows)]


@pytest.mark.parametrize("rows", [1, 3, 7, 10, 11, 1000])
@pytest.mark.parametrize("files", [1, 3])
def test_raw_batches_are_the_log_in_order_cut_at_the_given_size(tmp_path, rows, files):
    for i, part in enumerate(np.array_split(np.arange(10), files)):
        write({"a": part, "b": [f"r{k}" for k in part]}, tmp_path / "log" / f"{i}.parquet")
    found = [b["a"] for b in batches(str(tmp_path / "log"), rows)]
    assert [len(part) for part in found] == [min(rows, 10 - start) for start in range(0, 10, rows)]
    assert [row for part in found for row in part] == list(range(10))


def test_raw_batches_are_cut_across_small_row_groups(tmp_path):
    pl.DataFrame({"a": np.arange(1000)}).write_parquet(tmp_path / "log.parquet", row_group_size=64)
    found = [b["a"] for b in batches(str(tmp_path / "log.parquet"), 300)]
    assert [len(part) for part in found] == [300, 300, 300, 100]
    assert [row for part in found for row in part] == list(range(1000))


def test_raw_batches_of_a_split_hold_its_rows_after_the_filter(tmp_path):
    path = write({"a": np.arange(100), "t": np.arange(100), "even": np.arange(100) % 2 == 0}, tmp_path / "log.parquet")
    found = batches(path, 4, split="test", where={"even": True}, columns=("t", "even"), time="t")
    assert [b["t"] for b in found] == [[90, 92, 94, 96], [98]]
    assert found[0]["even"] == [True] * 4


def test_raw_batches_of_nothing_are_none(tmp_path):
    path = write({"a": pl.Series([], dtype=pl.Int64)}, tmp_path / "log.parquet")
    assert batches(path, 4) == []


# Roles


@pytest.mark.parametrize("role", ["scenario", "group"])
@pytest.mark.parametrize("value", [[1], {"x": 1}, b"x", 0.5], ids=["list", "struct", "bytes", "float"])
def test_scenarios_and_groups_are_single_values(tmp_path, role, value):
    path = write({"a": [1, 2], "r": [value, value]}, tmp_path / "log.parquet")
    if role == "scenario" and isinstance(value, float):
        assert len(opened(spec_of(scenario="r"), path)) == 2
        return
    with pytest.raises(LogError, match=f"{role} 'r': expected integers.* or times, found .*; cast the column"):
        open_log(spec_of(**{role: "r"}), path)


@pytest.mark.parametrize("role", ["scenario", "group"])
@pytest.mark.parametrize("value", [1, "x", True, None, date(2026, 1, 1)])
def test_whatever_names_a_scenario_or_a_group_is_taken(tmp_path, role, value):
    path = write({"a": [1, 2], "r": [value, value]}, tmp_path / "log.parquet")
    assert opened(spec_of(**{role: "r"}), path)["r"].to_list() == [value, value]
