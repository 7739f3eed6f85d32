"""History columns of encoded logs: causal for the rows trained on, frozen for all others, the same bytes every time."""

from datetime import date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recdistill.data import replay as module
from recdistill.data import times
from recdistill.data.encode import encode
from recdistill.data.encoded import EncodedLog
from recdistill.data.history import causal
from recdistill.data.log import SPLIT, open_log, with_split
from recdistill.errors import LogError
from recdistill.spec.features import FeatureSpec
from tests.data.logs import write
from tests.data.test_encode import contents
from tests.oracles import history as oracle

SPLITS = ("train", "valid", "test")
BY_DAY = {"column": "day", "train": [0, 6], "valid": [7, 7], "test": [8, 9]}


def raw(rows=400, seed=0):
    """A log in which days are no times: rows of all splits lie side by side, some in none, some without a time."""
    rng = np.random.default_rng(seed)

    def some_null(values, share):
        return pl.Series(values).set(pl.Series(rng.random(rows) < share), None)

    return pl.DataFrame(
        {
            "t": some_null(rng.integers(0, rows // 2, rows), 0.04),
            "day": rng.integers(0, 11, rows),
            "user": some_null(rng.integers(0, 9, rows), 0.1),
            "tag": some_null(rng.choice(["a", "é", "", "日本"], rows), 0.1),
            "visit": some_null(rng.integers(0, 3, rows), 0.2),
            "y": some_null(rng.integers(0, 2, rows).astype(np.int8), 0.3),
            "stars": some_null(np.round(rng.normal(3, 1, rows), 2), 0.1),
        }
    )


def spec(column, **values):
    made = FeatureSpec.model_validate(
        {
            "time": "t",
            "split": BY_DAY,
            "serving": {"h": {"type": "history", "scale": "none", "log": False, **column}},
            "post_event": {"y": "binary"},
            **values,
        }
    )
    assert made.problems() == []
    return made


@pytest.fixture
def encoded(tmp_path):
    """A function that encodes a log with one history column."""
    count = iter(range(100))

    def run(column, frame=None, values=None, **options):
        path = write(raw() if frame is None else frame, tmp_path / "log.parquet")
        return encode(spec(column, **(values or {})), path, tmp_path / f"out {next(count)}", **options)

    return run


def by_row(log, view="serving", column="h"):
    """Encoded values by row number."""
    found = pl.concat([log.view(split, view).collect() for split in SPLITS if log.rows[split]])
    return dict(zip(found["row_id"].to_list(), found[column].to_list(), strict=True))


def expected(frame, column, fit_on=("train",), split=None, time=None):
    """The oracle's values by row number, of rows in any split."""
    days = frame["day"].to_list()
    split = split or ["train" if d < 7 else "valid" if d == 7 else "test" if d < 10 else None for d in days]
    key = list(
        zip(*([v or None if k == "tag" else v for v in frame[k].to_list()] for k in column["keys"]), strict=True)
    )
    of, session = (frame[column[n]].to_list() if n in column else None for n in ("of", "session"))
    options = {n: column[n] for n in ("prior", "half_life") if n in column}
    rate = column.get("value", "rate" if of else "count") == "rate"
    trained = [s in fit_on for s in split]
    found = oracle.column(key, time or frame["t"].to_list(), trained, of, session, rate=rate, **options)
    return {i: v for i, (v, s) in enumerate(zip(found, split, strict=True)) if s is not None}


def same(found, oracles):
    assert found.keys() == oracles.keys()
    np.testing.assert_allclose([found[i] for i in oracles], list(oracles.values()), rtol=2e-6, atol=1e-6)


COLUMNS = {
    "count": {"keys": ["user"]},
    "count of text keys": {"keys": ["tag"]},
    "fading count": {"keys": ["user"], "half_life": 25.0},
    "count of successes": {"keys": ["user", "tag"], "of": "y", "value": "count"},
    "rate": {"keys": ["user"], "of": "y"},
    "rate with a small prior": {"keys": ["tag", "user"], "of": "y", "prior": 0.5},
    "rate of fractions": {"keys": ["tag"], "of": "stars", "half_life": 50.0},
    "other visits": {"keys": ["user"], "of": "y", "session": "visit"},
    "all together": {"keys": ["user", "tag"], "of": "stars", "session": "visit", "half_life": 9.5, "prior": 3.0},
}


@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
def test_every_row_is_encoded_as_the_oracle_says(encoded, column):
    log = encoded(column)
    assert log.rows["left_out"] > 0
    same(by_row(log), expected(raw(), column))


def minutes(frame):
    return [None if t is None else datetime(2024, 1, 1) + timedelta(minutes=t) for t in frame["t"].to_list()]


def days(frame):
    return [None if t is None else date(2024, 1, 1) + timedelta(days=t) for t in frame["t"].to_list()]


TIMES = {
    "floats": (lambda f: f["t"] / 8, None, 1 / 8),
    "small integers": (lambda f: f["t"], pl.Int16, 1),
    "unsigned": (lambda f: f["t"], pl.UInt64, 1),
    "days": (days, pl.Date, 1),
    "milliseconds": (minutes, pl.Datetime("ms"), 60),
    "nanoseconds": (minutes, pl.Datetime("ns"), 60),
    "in a zone": (minutes, pl.Datetime("us", "UTC"), 60),
    "of the day": (lambda f: [None if t is None else t.time() for t in minutes(f)], pl.Time, 60),
    "durations": (lambda f: [None if t is None else timedelta(minutes=t) for t in f["t"].to_list()], None, 60),
}


@pytest.mark.parametrize(("make", "dtype", "step"), TIMES.values(), ids=TIMES)
def test_times_of_any_type_have_their_unit(encoded, make, dtype, step):
    frame = raw()
    changed = frame.with_columns(t=pl.Series(make(frame), dtype=dtype))
    column = {"keys": ["user"], "half_life": 20.0 * step}
    same(by_row(encoded(column, changed)), expected(frame, {**column, "half_life": 20.0}))


@pytest.mark.parametrize(
    ("split", "fit_on"),
    [({"time": {"valid": 0.2}}, ("train",)), ({"hash": {}}, ("train",)), (None, ("train", "valid"))],
)
def test_any_split_and_the_splits_that_a_refit_is_trained_on(encoded, split, fit_on):
    column, frame = {"keys": ["user"], "of": "y", "half_life": 60.0}, raw()
    if split is None or "time" in split:  # which needs a time in every row
        frame = frame.with_columns(pl.col("t").fill_null(7))
    values = {"split": split}
    log = encoded(column, frame, values=values, fit_on=fit_on)
    made = spec(column, **values)
    path = write(frame, log.folder.parent / "again.parquet")
    told = with_split(open_log(made, path), made).select(SPLIT).collect()[SPLIT].to_list()
    same(by_row(log), expected(frame, column, fit_on, told))


def test_after_a_refit_validation_rows_count_and_are_causal(encoded):
    column, frame = {"keys": ["user"], "of": "y", "value": "count"}, raw()
    once, again = by_row(encoded(column)), by_row(encoded(column, fit_on=("train", "valid")))
    same(again, expected(frame, column, ("train", "valid")))
    assert all(again[i] >= once[i] for i in once if frame["day"][i] < 7 or frame["day"][i] > 7)
    assert any(again[i] < once[i] for i in once if frame["day"][i] == 7)


def test_rows_filtered_out_are_in_no_history(encoded):
    column, frame = {"keys": ["user"]}, raw().with_columns(kind=pl.int_range(400) % 3)
    found = by_row(encoded(column, frame, where={"kind": [0, 1]}))
    kept = expected(frame.filter(pl.col("kind") < 2), column)
    assert sorted(found.values()) == sorted(kept.values())


def test_keys_and_outcomes_may_come_from_side_tables(encoded, tmp_path):
    side = pl.DataFrame({"user": range(9), "home": [f"town {u % 3}" for u in range(9)]})
    write(side, tmp_path / "side.parquet")
    log = encoded({"keys": "home"}, values={"join": {str(tmp_path / "side.parquet"): {"on": "user"}}})
    joined = raw().join(side, on="user", how="left", maintain_order="left")
    same(by_row(log), expected(joined, {"keys": ["home"]}))


def test_post_event_histories_are_encoded_likewise(encoded):
    column = {"keys": ["user", "visit"], "of": "y"}
    dear = {"y": "binary", "p": {"type": "history", "scale": "none", **column}}
    log = encoded({"keys": "user"}, values={"post_event": dear})
    same(by_row(log, "post_event", "p"), expected(raw(), column))


# What a row must not know


@settings(max_examples=15)
@given(data=st.data())
def test_later_rows_change_no_earlier_training_value(tmp_path_factory, data):
    """Scaling aside, which is learned from all rows that are trained on, as of every numeric column."""
    folder, frame = tmp_path_factory.mktemp("shift"), raw(120)
    now = data.draw(st.integers(0, 59))
    other = raw(120, seed=data.draw(st.integers(1, 1000)))
    late = pl.col("t") > now
    changed = frame.with_columns(
        pl.when(late).then(other[n]).otherwise(n).alias(n) for n in ("user", "tag", "y", "visit")
    )
    changed = changed.with_columns(t=pl.when(late).then(pl.col("t") + 1).otherwise("t"))
    column = {"keys": ["user"], "of": "y", "value": "count", "session": "visit", "half_life": 13.0}
    first, second = (
        by_row(encode(spec(column), write(f, folder / n / "log.parquet"), folder / n / "out"))
        for n, f in (("a", frame), ("b", changed))
    )
    early = [i for i, (t, d) in enumerate(frame.select("t", "day").iter_rows()) if d < 7 and (t is None or t <= now)]
    assert [first[i] for i in early] == [second[i] for i in early]


def test_no_row_knows_its_own_outcome(encoded):
    frame, column = raw().with_columns(stars=pl.lit(1.0)), {"keys": ["user"], "of": "stars", "value": "count"}
    before = by_row(encoded(column, frame))
    for row in frame.with_row_index("i").filter(pl.col("day") < 7, pl.col("t").is_not_null())["i"][::30]:
        praised = frame.with_columns(stars=pl.when(pl.int_range(400) == row).then(500.0).otherwise("stars"))
        after = by_row(encoded(column, praised))
        assert after[row] == before[row]
        assert after != before


def test_the_oracle_catches_rows_that_see_themselves(encoded, monkeypatch):
    def inclusive(key_N, time_N, value_N, counts_N, *options):
        found = causal(key_N, time_N, value_N, counts_N, *options)
        return found._replace(n_N=found.n_N + counts_N, sum_N=found.sum_N + np.where(counts_N, value_N, 0))

    monkeypatch.setattr(module, "causal", inclusive)
    for column in COLUMNS.values():
        with pytest.raises(AssertionError):
            same(by_row(encoded(column)), expected(raw(), column))


def test_what_happens_to_held_out_rows_changes_no_history(encoded):
    frame, column = raw(), {"keys": ["user"], "of": "y", "half_life": 30.0}
    held_out = pl.col("day") > 6
    changed = frame.with_columns(
        t=pl.when(held_out).then(pl.col("t") * 1000).otherwise("t"),
        y=pl.when(held_out).then(1 - pl.col("y")).otherwise("y"),
    )
    assert not changed.equals(frame)
    first, second = encoded(column, frame), encoded(column, changed)
    assert by_row(first) == by_row(second)
    assert first.fitted.columns["h"].snapshot.equals(second.fitted.columns["h"].snapshot)


def test_rows_without_a_time_see_nothing_and_count_nowhere(encoded):
    frame = raw().with_columns(t=pl.when(pl.col("user") == 3).then(None).otherwise("t"))
    found = by_row(encoded({"keys": ["user"]}, frame))
    assert {found[i] for i in found if frame["user"][i] == 3} == {0.0}


def test_a_log_without_known_outcomes_has_histories_of_nothing(encoded):
    log = encoded({"keys": ["user"], "of": "stars"}, raw().with_columns(stars=pl.lit(None, pl.Float64)))
    assert set(by_row(log).values()) == {0.0}
    assert len(log.fitted.columns["h"].snapshot) == 0


# Scaling


def test_counts_are_compressed_and_standardised_on_the_training_rows(encoded):
    log = encoded({"keys": ["user"], "log": None, "scale": "standard"})
    counts = expected(raw(), {"keys": ["user"]})
    known = np.log1p([n for i, n in counts.items() if raw()["day"][i] < 7])
    same(by_row(log), {i: (np.log1p(n) - known.mean()) / known.std() for i, n in counts.items()})


def test_rates_are_not_compressed_unless_asked(encoded):
    assert not encoded({"keys": ["user"], "of": "y", "log": None}).fitted.columns["h"].log
    assert encoded({"keys": ["user"], "of": "y", "log": True}).fitted.columns["h"].log


# The same bytes


@pytest.mark.parametrize("column", [COLUMNS["fading count"], COLUMNS["all together"]], ids=str)
def test_encoding_again_gives_the_same_bytes_whatever_the_chunks(encoded, monkeypatch, column):
    folders = [encoded(column).folder, encoded(column).folder]
    monkeypatch.setattr(times, "CHUNK_ROWS", 7)
    folders.append(encoded(column).folder)
    assert contents(folders[0]) == contents(folders[1]) == contents(folders[2])
    assert not any("histor" in name for name in contents(folders[0]) if not name.startswith("vocabularies"))


def test_values_stay_with_their_rows_in_a_log_of_many_files(tmp_path):
    frame = raw(3000)
    for i in range(0, 3000, 100):
        (tmp_path / "log").mkdir(exist_ok=True)
        frame[i : i + 100].write_parquet(tmp_path / "log" / f"{i:05d}.parquet", row_group_size=17)
    column = {"keys": ["user"], "of": "stars", "half_life": 70.0}
    parts = encode(spec(column), str(tmp_path / "log"), tmp_path / "parts")
    whole = encode(spec(column), write(frame, tmp_path / "log.parquet"), tmp_path / "whole")
    assert by_row(parts) == by_row(whole)
    same(by_row(whole), expected(frame, column))


def test_other_history_columns_change_nothing(encoded):
    column = {"type": "history", "scale": "none", **COLUMNS["rate"]}
    both = {"serving": {"g": {"type": "history", "keys": "tag"}, "h": column}}
    assert by_row(encoded({}, values=both)) == by_row(encoded(COLUMNS["rate"]))


# Logs that are scored later


def scored(log, frame, folder, **changes):
    """Another log, encoded by the columns of this one."""
    made = log.spec.model_copy(update={"split": None, "time": None, **changes})
    return by_row(encode(made, write(frame, folder / "new.parquet"), folder / "new", fitted=log.fitted))


def test_later_logs_are_looked_up_in_what_was_known_after_training(encoded, tmp_path):
    log = EncodedLog.open(encoded(COLUMNS["all together"]).folder)
    told = by_row(log)
    held_out = raw().with_row_index("i").filter(pl.col("day").is_between(7, 9))
    found = scored(log, held_out.drop("i", "t", "stars", "visit", "day"), tmp_path)
    assert list(found.values()) == [told[i] for i in held_out["i"]]
    strangers = held_out.with_columns(user=pl.lit(77))
    assert set(scored(log, strangers, tmp_path).values()) == {np.float32(log.fitted.columns["h"].unseen)}


def test_a_later_log_may_bring_fresher_values(encoded, tmp_path):
    log = encoded({"keys": ["user"], "log": True, "scale": "standard"})
    frame = raw().with_columns(h=pl.when(pl.int_range(400) % 2 == 0).then(pl.lit(41.0)).otherwise(float("nan")))
    plain, found = scored(log, frame.drop("h"), tmp_path), scored(log, frame, tmp_path)
    fitted = log.fitted.columns["h"]
    fresh = np.float32((np.log1p(41.0) - fitted.shift) / fitted.scale)
    assert [found[i] for i in range(0, 400, 2)] == [fresh] * 200
    assert [found[i] for i in range(1, 400, 2)] == [plain[i] for i in range(1, 400, 2)]


def test_a_log_that_is_learned_from_has_its_own_history_and_no_other(encoded):
    column = COLUMNS["rate"]
    assert by_row(encoded(column, raw().with_columns(h=pl.lit(9.0)))) == by_row(encoded(column))


# Refusals


@pytest.mark.parametrize(
    ("changes", "column", "message"),
    [
        ({"user": pl.col("user") + 0.5}, {}, "h: a key holds fractions, which are no keys; cast or round"),
        ({"user": pl.concat_list("user")}, {}, "h: the key 'user' holds lists; name a column with one value per row"),
        ({"user": pl.lit(date(2024, 1, 1))}, {}, "h: expected integers, whole floats, booleans or texts, found Date"),
        ({"t": pl.col("tag")}, {}, "time: expected numbers, dates or times, found String in 't'"),
        ({"t": pl.col("t") > 3}, {}, "time: expected numbers, dates or times, found Boolean in 't'"),
        ({}, {"of": "tag"}, "h.of: expected floats, integers or booleans, found String"),
        (
            {"visit": pl.concat_list("visit")},
            {"session": "visit"},
            "h.session: expected integers, floats, texts or times",
        ),
        ({}, {"of": "likes"}, "needs columns that neither the log nor a joined table has: 'likes'"),
    ],
)
def test_what_does_not_suit_is_refused(encoded, changes, column, message):
    with pytest.raises(LogError) as caught:
        encoded({"keys": ["user"], **column}, raw().with_columns(**changes))
    assert message in str(caught.value)


def test_a_later_log_must_hold_keys_of_the_same_kind(encoded, tmp_path):
    log = encoded({"keys": ["user"]})
    with pytest.raises(LogError, match="h: is String here, but was Int64 when it was fitted"):
        scored(log, raw().with_columns(pl.col("user").cast(pl.String)), tmp_path)
