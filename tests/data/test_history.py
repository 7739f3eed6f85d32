"""The past of each row, against an oracle that looks at all pairs, and unmoved by anything that comes later."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recdistill.data import history as module
from recdistill.data.history import causal, past_lists
from tests.oracles import history as oracle

moderate = settings(max_examples=60)
MISSING = -(2**63)


def random_rows(seed, rows=1000, kind="integers", keys=12):
    """Keys, times with ties and gaps, outcomes, what counts, and sessions."""
    rng = np.random.default_rng(seed)
    time = rng.integers(0, rows // 3, rows)
    if kind == "floats":
        time = np.where(rng.random(rows) < 0.05, np.nan, time / 7)
    else:
        time = np.where(rng.random(rows) < 0.05, MISSING, time)
    return {
        "key_N": rng.zipf(1.5, rows) % keys,
        "time_N": time,
        "value_N": rng.normal(0, 1, rows) if kind == "floats" else rng.integers(0, 2, rows).astype(np.float64),
        "counts_N": rng.random(rows) < 0.7,
        "session_N": np.where(rng.random(rows) < 0.2, MISSING, rng.integers(0, 4, rows)),
    }


def plain(array, missing=MISSING):
    return [None if v == missing or v != v else v for v in array.tolist()]


def check(found, rows, half_life):
    """The oracle's verdict on number, sum and ends."""
    told = {name.removesuffix("_N"): plain(array) for name, array in rows.items()}
    expected = np.array(oracle.causal(**told, half_life=half_life)).reshape(-1, 2)
    np.testing.assert_allclose(found.n_N, expected[:, 0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.sum_N, expected[:, 1], rtol=1e-9, atol=1e-12)
    told.pop("session", None)
    ends = sorted(oracle.ends(**told, half_life=half_life).items())
    assert found.key_K.tolist() == [key for key, _ in ends]
    np.testing.assert_allclose(
        np.stack([found.end_n_K, found.end_sum_K], 1), np.array([v for _, v in ends]).reshape(-1, 2), rtol=1e-9
    )


# Against the oracle


@pytest.mark.parametrize("sessions", [False, True], ids=["all rows", "other sessions"])
@pytest.mark.parametrize("half_life", [None, 0.5, 40.0])
@pytest.mark.parametrize("kind", ["integers", "floats"])
def test_every_row_sees_what_the_oracle_sees(kind, half_life, sessions):
    rows = random_rows(3, kind=kind)
    if not sessions:
        rows.pop("session_N")
    check(causal(**rows, half_life=half_life), rows, half_life)


def seen_itself(**rows):
    found = causal(**rows)
    return found._replace(n_N=found.n_N + rows["counts_N"])


def in_the_order_of_the_log(**rows):
    """Rows of one instant see those that stand before them."""
    return causal(**{**rows, "time_N": rows["time_N"] * 10_000 + np.arange(len(rows["time_N"]))})


def of_the_whole_log(**rows):
    """What is known in the end, for every row: a leak of everything later."""
    found = causal(**rows)
    place = np.searchsorted(found.key_K, rows["key_N"]).clip(max=len(found.key_K) - 1)
    return found._replace(n_N=found.end_n_K[place])


TWINS = {
    "inclusive": seen_itself,
    "ties by the order of the log": in_the_order_of_the_log,
    "the whole log": of_the_whole_log,
    "own session counts": lambda **rows: causal(**{**rows, "session_N": None}),
    "no decay": lambda **rows: causal(**{**rows, "half_life": None}),
    "a whole life instead of half": lambda **rows: causal(**{**rows, "half_life": rows["half_life"] * np.log(2)}),
    "unknown outcomes count": lambda **rows: causal(**{**rows, "counts_N": np.ones_like(rows["counts_N"])}),
    "keys mixed up": lambda **rows: causal(**{**rows, "key_N": rows["key_N"] // 2}),
}


@pytest.mark.parametrize("twin", TWINS.values(), ids=TWINS)
def test_the_oracle_catches_a_wrong_twin(twin):
    rows = random_rows(4, rows=300)
    check(causal(**rows, half_life=20.0), rows, 20.0)
    with pytest.raises(AssertionError):
        check(twin(**rows, half_life=20.0), rows, 20.0)


ROWS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.integers(0, 6) | st.just(MISSING),
        st.integers(-3, 3),
        st.booleans(),
        st.sampled_from([0, 1, MISSING]),
    ),
    max_size=25,
)


def columns(rows):
    key, time, value, counts, session = (
        (np.array(c, np.int64) for c in zip(*rows, strict=True)) if rows else [np.zeros(0, np.int64)] * 5
    )
    return {
        "key_N": key,
        "time_N": time,
        "value_N": value / 3,
        "counts_N": counts.astype(bool),
        "session_N": session,
    }


@moderate
@given(ROWS, st.sampled_from([None, 0.25, 3.0]))
def test_few_rows_of_any_kind_agree_with_the_oracle(rows, half_life):
    check(causal(**columns(rows), half_life=half_life), columns(rows), half_life)


# Nothing later matters


@moderate
@given(ROWS.filter(len), st.integers(0, 6), st.sampled_from([None, 0.7, 5.0]), st.randoms(use_true_random=False))
def test_whatever_happens_later_changes_no_bit_of_what_was_seen(rows, now, half_life, random):
    """Later rows get other keys, times, outcomes and sessions; rows of this instant other outcomes."""

    def other(row):
        key, time, _, _, session = row
        if time == MISSING or time < now:
            return row
        if time > now:
            key, time, session = random.randint(0, 2), random.randint(now + 1, now + 9), random.randint(0, 1)
        return key, time, random.randint(-9, 9), random.random() < 0.5, session

    changed = [other(row) for row in rows]
    first, second = (causal(**columns(r), half_life=half_life) for r in (rows, changed))
    same = columns(rows)["time_N"] <= now
    assert first.n_N[same].tobytes() == second.n_N[same].tobytes()
    assert first.sum_N[same].tobytes() == second.sum_N[same].tobytes()


@pytest.mark.parametrize("half_life", [None, 30.0])
def test_rows_of_other_keys_change_no_bit(half_life):
    rows = random_rows(5, kind="floats")
    mine = rows["key_N"] == 3
    alone = {name: array[mine] for name, array in rows.items()}
    whole, part = causal(**rows, half_life=half_life), causal(**alone, half_life=half_life)
    assert whole.sum_N[mine].tobytes() == part.sum_N.tobytes()
    assert whole.n_N[mine].tobytes() == part.n_N.tobytes()


def test_the_order_of_the_log_does_not_matter_where_times_differ():
    rows = random_rows(6, kind="floats")
    rows["time_N"] = np.random.default_rng(0).permutation(1000) / 8
    turned = {name: array[::-1].copy() for name, array in rows.items()}
    first, second = causal(**rows, half_life=9.0), causal(**turned, half_life=9.0)
    assert first.sum_N[::-1].tobytes() == second.sum_N.tobytes()
    assert first.end_sum_K.tobytes() == second.end_sum_K.tobytes()


@pytest.mark.parametrize("kind", ["integers", "floats"])
def test_how_many_rows_are_worked_on_at_a_time_changes_no_bit(monkeypatch, kind):
    rows = random_rows(7, kind=kind)
    first = causal(**rows, half_life=11.0)
    monkeypatch.setattr(module, "SOME_ROWS", 7)
    for one, two in zip(first, causal(**rows, half_life=11.0), strict=True):
        assert one.tobytes() == two.tobytes()


# Spans and sizes


@pytest.mark.parametrize("half_life", [5e-324, 1e-300, 1.0, 1e300])
@pytest.mark.parametrize("time", [[-(2**63) + 1, 0, 2**63 - 1], [-1.7e308, 0.0, 1.7e308], [0, 1, 2**60]], ids=str)
def test_no_span_of_time_is_too_long(time, half_life):
    time = np.array(time * 3)
    rows = {"key_N": np.zeros(9, np.int64), "time_N": time, "value_N": np.ones(9), "counts_N": np.ones(9, bool)}
    found = causal(**rows, half_life=half_life)
    check(found, rows, half_life)
    assert np.isfinite(found.n_N).all()


def test_a_thousand_half_lives_are_forgotten_and_later_rows_are_not():
    rows = {"key_N": np.zeros(4, np.int64), "time_N": np.array([0, 100_000, 100_001, 100_002])}
    found = causal(**rows, value_N=np.ones(4), counts_N=np.ones(4, bool), half_life=1.0)
    assert found.n_N.tolist() == [0.0, 0.0, 0.5, 0.75]
    assert found.end_n_K.tolist() == [1.75]


def test_counts_of_a_long_history_are_exact():
    rows = 300_000
    found = causal(np.zeros(rows, np.int64), np.arange(rows), np.full(rows, 3.0), np.ones(rows, bool))
    assert np.array_equal(found.n_N, np.arange(rows))
    assert np.array_equal(found.sum_N, 3 * np.arange(rows))


def test_a_session_of_all_counted_rows_leaves_exactly_nothing():
    """Rows between that do not count change the order of addition, so that differences leave some rounding."""
    rng = np.random.default_rng(0)
    counts = rng.random(90) < 0.6
    rows = {"key_N": np.zeros(90, np.int64), "time_N": np.arange(90), "session_N": np.where(counts, 0, 1)}
    found = causal(**rows, value_N=rng.normal(0, 1, 90), counts_N=counts, half_life=3.3)
    assert found.n_N[~counts].any()
    assert not found.n_N[counts].any()
    assert not found.sum_N[counts].any()


def test_no_rows_have_no_past():
    found = causal(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, bool), half_life=1.0)
    assert [len(array) for array in found] == [0] * 5


# Lists


def lists(past, rows):
    """The list of each row."""
    length_B, row_L = past.of(rows)
    return [part.tolist() for part in np.split(row_L, np.cumsum(length_B)[:-1])] if len(rows) else []


@moderate
@given(ROWS, st.integers(1, 6), st.randoms(use_true_random=False))
def test_lists_are_those_of_the_oracle_for_rows_asked_in_any_order(rows, longest, random):
    told = columns(rows)
    key, time, keep = (told[name] for name in ("key_N", "time_N", "counts_N"))
    asked = np.array([random.randrange(len(rows)) for _ in rows], np.int64)
    expected = [oracle.past_list(i, plain(key), plain(time), keep.tolist(), longest) for i in asked]
    assert lists(past_lists(key, time, keep, longest), asked) == expected


@pytest.mark.parametrize("kind", ["integers", "floats"])
def test_lists_of_a_long_log_are_those_of_the_oracle(kind):
    rows = random_rows(8, kind=kind)
    key, time, keep = (rows[name] for name in ("key_N", "time_N", "counts_N"))
    expected = [oracle.past_list(i, plain(key), plain(time), keep.tolist(), 5) for i in range(1000)]
    assert max(len(past) for past in expected) == 5
    assert lists(past_lists(key, time, keep, 5), np.arange(1000)) == expected


def test_nothing_later_is_in_a_list():
    rows = random_rows(9)
    key, time, keep = (rows[name] for name in ("key_N", "time_N", "counts_N"))
    length_B, row_L = past_lists(key, time, keep, 100).of(np.arange(1000))
    asker = np.repeat(np.arange(1000), length_B)
    assert (time[row_L] < time[asker]).all()
    assert (key[row_L] == key[asker]).all()
    assert keep[row_L].all()
    assert (time[row_L] != MISSING).all()
