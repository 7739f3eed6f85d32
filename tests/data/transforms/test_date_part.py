"""Columns of type ``date_part``: pipeline and artefact against the datetime module and the time zone database."""

import functools
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recdistill.data.fit import same_rows
from recdistill.data.transforms.date_part import COUNTS, END, START, spans
from recdistill.errors import LogError
from tests.data.transforms.cases import Frame, fitted, frame_of
from tests.data.transforms.test_parity import moderate
from tests.oracles import encoding as oracle

ZONES = [
    "UTC",
    "Asia/Shanghai",
    "America/New_York",
    "Europe/Berlin",
    "Asia/Kolkata",
    "Australia/Lord_Howe",  # daylight saving of half an hour
    "Africa/Casablanca",  # daylight saving but in Ramadan
    "Pacific/Apia",  # left out a day
    "America/St_Johns",  # changed its clocks at 00:01
    "Africa/Monrovia",  # seconds from UTC until 1972
]
PER_SECOND = {"s": 1, "ms": 1000, "us": 10**6, "ns": 10**9}
TIMES = {
    "s": pl.Int64,
    "ms": pl.Int64,
    "us": pl.Int64,
    "Datetime ms": pl.Datetime("ms"),
    "Datetime us": pl.Datetime("us", "America/New_York"),
    "Datetime ns": pl.Datetime("ns"),
}


@functools.cache
def case(kind, part, zone):
    declared = {"type": "date_part", "part": part, "zone": zone, "column": "raw"}
    if kind in PER_SECOND:
        declared["unit"] = kind
    train = frame_of(raw=pl.Series([None], dtype=TIMES[kind]))
    return Frame(declared, train)


def near_changes(zone):
    """Seconds around changes of a zone's clocks, and the ends of what is supported."""
    changes = st.sampled_from(spans(zone)[0])
    return st.builds(lambda second, near: second + near, changes, st.sampled_from([-3601, -1, 0, 1, 3599, 3600]))


@pytest.mark.parametrize("kind", TIMES)
@pytest.mark.parametrize("zone", ZONES)
@moderate
@given(data=st.data())
def test_parts_are_those_of_local_clocks_in_pipeline_and_artefact(kind, zone, data):
    per = PER_SECOND[kind.split()[-1]]
    second = near_changes(zone) | st.integers(START, END) | st.integers(0, 2**31)
    value = st.builds(lambda s, rest: s * per + rest, second, st.integers(0, per - 1))
    anything = (
        st.none() | st.sampled_from([-(2**63), -(2**63) + 1, 2**63 - 1, 0, -1]) | st.integers(-(2**63), 2**63 - 1)
    )
    values = data.draw(st.lists(value.filter(lambda v: abs(v) < 2**63) | anything, min_size=20, max_size=40))
    part = data.draw(st.sampled_from(list(COUNTS)))
    found, raw = case(kind, part, zone), frame_of(raw=pl.Series(values, dtype=pl.Int64).cast(TIMES[kind]))
    expected = [oracle.date_row(v, part, kind.split()[-1], zone) for v in values]
    assert found.encoded(raw) == expected
    assert found.pipeline(raw)["typed"].dtype == pl.Int32
    assert found.artefact(raw).tolist() == expected


@pytest.mark.parametrize("part", ["weekday", "day", "month"])
@moderate
@given(values=st.lists(st.none() | st.dates() | st.dates(date(1900, 1, 1), date(2099, 12, 31)), min_size=20))
def test_dates_are_calendar_days_whatever_the_zone(part, values):
    found = Frame({"type": "date_part", "part": part, "column": "raw"}, frame_of(raw=pl.Series([], dtype=pl.Date)))
    raw = frame_of(raw=pl.Series(values, dtype=pl.Date))
    days = [None if v is None else (v - date(1970, 1, 1)).days for v in values]
    expected = [oracle.date_row(d, part, "day", "UTC") for d in days]
    assert found.encoded(raw) == expected == found.artefact(raw).tolist()


@pytest.mark.parametrize("part", COUNTS)
def test_every_part_of_a_year_has_its_row(part):
    hours = pl.Series([1_600_000_000 + 3600 * h for h in range(366 * 24)])
    found = case("s", part, "UTC")
    assert set(found.encoded(frame_of(raw=hours))) == set(range(2, 2 + COUNTS[part]))
    assert found.column.tables == {"typed": 2 + COUNTS[part]}


def test_an_hour_that_daylight_saving_repeats_is_seen_twice_and_one_that_it_skips_never():
    def hours(day):
        start = int(datetime(*day, tzinfo=ZoneInfo("Europe/Berlin")).timestamp())
        return case("s", "hour", "Europe/Berlin").encoded(frame_of(raw=[start + 1800 * k for k in range(48)]))

    spring, autumn = hours((2024, 3, 31)), hours((2024, 10, 27))
    assert spring.count(2 + 2) == 0 and autumn.count(2 + 2) == 4 and autumn.count(2 + 3) == 2


def every_change(zone):
    """Distances from UTC after each change of a zone's clocks, by a look at every third hour."""
    info, step = ZoneInfo(zone), 3 * 3600
    moment, end = datetime(1900, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
    last, found = moment.astimezone(info).utcoffset(), []
    while moment < end:
        moment += timedelta(seconds=step)
        offset = moment.astimezone(info).utcoffset()
        if offset != last:
            found.append(offset.total_seconds())
            last = offset
    return found


@pytest.mark.parametrize("zone", ["Africa/Casablanca", "Europe/Warsaw"])
def test_no_change_of_clocks_is_overlooked(zone):
    assert list(spans(zone)[1][1:]) == every_change(zone)


def test_every_zone_of_the_database_can_be_named():
    zones = available_timezones()
    assert {"Asia/Shanghai", "UTC", "America/Argentina/ComodRivadavia"} <= zones
    starts, offsets = spans("Asia/Shanghai")
    assert (starts[0], starts[-1]) == (START, END) and len(starts) == len(offsets) + 1
    assert offsets[-1] == 8 * 3600


def test_a_column_that_is_absent_is_missing_in_all_rows():
    assert case("ms", "hour", "Asia/Shanghai").ask({}, {}, {}, 2).tolist() == [0, 0]
    assert (
        case("ms", "hour", "Asia/Shanghai").ask({"raw": torch.tensor([], dtype=torch.int64)}, {}, {}, 0).tolist() == []
    )


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([1.5], {}, "typed: expected integers, times or dates, found Float64; cast the column"),
        (["2024"], {}, "typed: expected integers, times or dates, found String"),
        ([True], {}, "typed: expected integers, times or dates, found Boolean"),
        ([[1]], {}, "typed: expected integers, .* found List"),
        (pl.Series([1], dtype=pl.Int128), {}, "typed: expected integers, .* found Int128"),
        ([date(2024, 1, 1)], {"part": "hour"}, "typed: 'raw' holds dates, which have no time of day"),
        ([date(2024, 1, 1)], {"zone": "Asia/Tokyo"}, "typed: 'raw' holds dates, which have no time of day"),
        ([1_650_000_000, 1_650_000_001], {}, "hardly times in ms; with `unit: s` they lie between 2022-04-15 and"),
        ([1_650_000_000_000], {"unit": "s"}, "hardly times in s; with `unit: ms` they lie between 2022-04-15 and"),
        ([1_650_000_000_000_000], {"unit": "ms"}, "hardly times in ms; with `unit: us` they lie"),
    ],
)
def test_raw_columns_that_hold_no_times_are_refused(values, options, message):
    declared = {"type": "date_part", "part": "weekday", "column": "raw", **options}
    with pytest.raises(LogError, match=message):
        fitted(declared, frame_of(raw=values))


def test_times_of_any_age_are_taken_in_the_unit_that_was_declared():
    for values in ([0, 5], [None], [1_650_000_000_000, 0], [-5, 10**17]):
        fitted({"type": "date_part", "part": "day", "column": "raw"}, frame_of(raw=pl.Series(values, dtype=pl.Int64)))


def test_times_travel_to_the_artefact_in_the_unit_that_they_were_fitted_in():
    found = case("Datetime ms", "hour", "UTC")
    assert found.inputs[0]["unit"] == "ms"
    hours = pl.Series([3_600_000, None, 7_199_000])
    for dtype in (pl.Datetime("ms"), pl.Datetime("ms", "Asia/Tokyo"), pl.Int64):
        assert found.artefact(frame_of(raw=hours.cast(dtype))).tolist() == [3, 0, 3]
    assert found.artefact(frame_of(raw=(hours * 1000).cast(pl.Datetime("us")))).tolist() == [3, 0, 3]
    with pytest.raises(pa.ArrowInvalid, match="would lose data"):
        found.artefact(frame_of(raw=hours.cast(pl.Datetime("us")) + timedelta(microseconds=1)))
    with pytest.raises(ValueError, match="raw: the student takes integers, found timestamp"):
        case("ms", "hour", "UTC").artefact(frame_of(raw=hours.cast(pl.Datetime("ms"))))


def test_rows_of_another_run_stand_for_the_same_part():
    def hour(**options):
        raw = frame_of(raw=pl.Series([None], dtype=pl.Int64))
        return fitted({"type": "date_part", "part": "hour", "column": "raw", **options}, raw)

    assert same_rows(hour(zone="Asia/Tokyo"), hour(unit="s")).tolist() == list(range(26))
    with pytest.raises(LogError, match="is encoded differently"):
        same_rows(hour(), hour(part="day"))
