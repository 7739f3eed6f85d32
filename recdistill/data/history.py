"""What came before each row of a log: how many rows of its key, how they turned out, and which ones.

A row never sees itself, a row of the same instant, or anything later. Rows are sorted by key and time once; what is
before a row is then a run that starts with the first row of its key and ends before the first row of its instant:

    key    a a a a b b b
    time   1 3 3 7 2 4 4
    sees   0 1 1 3 0 1 1 rows

Legend: N rows of a log, S those of them that have a time, sorted; K keys; M kept rows; B asked rows, L their past rows.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recdistill.data.transforms.hashing import splitmix64
from recdistill.data.transforms.raw import MISSING_INT

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Times = NDArray[np.int64] | NDArray[np.float64]

EXACT = 2.0**53  # whole numbers up to it are added up without rounding, in any order
SOME_ROWS = 2**20  # that are worked on at a time where there would be several temporary arrays


class Past(NamedTuple):
    """What `causal` finds.

    Attributes:
        n_N: the number of counted rows before each row, each weighing ``2 ** (-age / half_life)``.
        sum_N: the sum of their values, weighted alike.
        key_K: the keys of all counted rows, ascending.
        end_n_K: the number of counted rows of each key at the time of the last row of all, that one included.
        end_sum_K: the sum of their values.
    """

    n_N: Floats
    sum_N: Floats
    key_K: Integers
    end_n_K: Floats
    end_sum_K: Floats


def causal(
    key_N: Integers,
    time_N: Times,
    value_N: Floats,
    counts_N: Flags,
    session_N: Integers | None = None,
    half_life: float | None = None,
) -> Past:
    """Number and sum of the counted rows of the same key before each row, excluding its session.

    What is found for a row depends, to the last bit, on the rows before it alone.

    Args:
        key_N: keys.
        time_N: times. The int64 minimum and NaN are *missing*: such a row sees nothing and counts nowhere.
        value_N: what is summed, finite where a row counts.
        counts_N: whether a row counts.
        session_N: sessions. The int64 minimum is *missing*: such a row is alone in its session.
        half_life: the age at which a row weighs one half, in the unit of ``time_N``; without it all weigh 1.

    Example:
        >>> key, time, ones = np.array([5, 5, 5, 6]), np.array([1, 3, 3, 4]), np.ones(4)
        >>> causal(key, time, ones, ones > 0).n_N.tolist()
        [0.0, 1.0, 1.0, 0.0]
    """
    timed_N = has_time(time_N)
    counts_N = counts_N & timed_N
    ones_N, value_N = counts_N.astype(np.float64), np.where(counts_N, value_N, 0.0)
    if session_N is not None:
        pair_N = splitmix64(splitmix64(key_N) ^ session_N)
        same = Timeline.of(pair_N, time_N, timed_N & (session_N != MISSING_INT))
        own = [same.totals(*what)[0] for what in ((ones_N, None), (ones_N, half_life), (value_N, half_life))]
        del same
    line = Timeline.of(key_N, time_N, timed_N)
    rows_N, rows_K = line.totals(ones_N, None)
    n_N, end_n_K = (rows_N, rows_K) if half_life is None else line.totals(ones_N, half_life)
    sum_N, end_sum_K = line.totals(value_N, half_life)
    if session_N is not None:
        others_N = rows_N > own[0]  # where there are none, what differences leave is rounding
        n_N = np.where(others_N, np.maximum(n_N - own[1], 0.0), 0.0)
        sum_N = np.where(others_N, sum_N - own[2], 0.0)
    seen_K = rows_K > 0
    return Past(n_N, sum_N, line.key_K[seen_K], end_n_K[seen_K], end_sum_K[seen_K])


def has_time(time_N: Times) -> Flags:
    """Whether a row has a time."""
    known_N: Flags = ~np.isnan(time_N) if time_N.dtype.kind == "f" else time_N != MISSING_INT
    return known_N


@dataclass(frozen=True)
class Timeline:
    """Rows sorted by key, by time, and by their place in the log.

    Attributes:
        rows: number of rows in the log.
        row_S: their numbers.
        time_S: their times.
        key_K: the keys, ascending.
        first_K: the first row of each key, in sorted order.
        start_S: the first row of each row's key.
        instant_S: the first row of each row's key and time.
    """

    rows: int
    row_S: Integers
    time_S: Times
    key_K: Integers
    first_K: Integers
    start_S: Integers
    instant_S: Integers

    @classmethod
    def of(cls, key_N: Integers, time_N: Times, known_N: Flags) -> "Timeline":
        """Sort those rows that are known."""
        row_S = np.flatnonzero(known_N)
        row_S = row_S[np.lexsort((time_N[row_S], key_N[row_S]))]  # stable
        key_S, time_S = key_N[row_S], time_N[row_S]
        new_key_S = np.ones(len(row_S), bool)
        new_key_S[1:] = key_S[1:] != key_S[:-1]
        new_time_S = new_key_S.copy()
        new_time_S[1:] |= time_S[1:] != time_S[:-1]
        first_K = np.flatnonzero(new_key_S)
        return cls(len(key_N), row_S, time_S, key_S[first_K], first_K, _latest(new_key_S), _latest(new_time_S))

    def totals(self, value_N: Floats, half_life: float | None) -> tuple[Floats, Floats]:
        """The weighted sum of a value before each row, (N,), and of each key at the time of the last row, (K,)."""
        total_S = self._running(value_N[self.row_S], half_life)
        before_N = np.zeros(self.rows)
        for start in range(0, len(total_S), SOME_ROWS):
            some = slice(start, start + SOME_ROWS)
            seen = self.instant_S[some] > self.start_S[some]
            latest = self.instant_S[some][seen] - 1
            weight = _weight(self.time_S[some][seen], self.time_S[latest], half_life)
            before_N[self.row_S[some][seen]] = total_S[latest] * weight
        last_K = np.append(self.first_K[1:], len(total_S))[: len(self.first_K)] - 1
        now_K = np.full(len(last_K), self.time_S.max() if len(last_K) else 0, self.time_S.dtype)
        return before_N, total_S[last_K] * _weight(now_K, self.time_S[last_K], half_life)

    def _running(self, value_S: Floats, half_life: float | None) -> Floats:
        """The weighted sum of each row and those before it in its key.

        Each round adds to a row's total that of the row 1, 2, 4, ... places before it, which holds as many rows. What
        is added depends on a row's place within its key alone, so that nothing after a row, and no other key, changes
        its rounding; and since weights are at most 1, no span of time is too long.
        """
        if half_life is None and np.abs(value_S).sum() < EXACT and not np.modf(value_S)[0].any():
            total_S = np.cumsum(value_S)
            return total_S - (total_S - value_S)[self.start_S]
        total_S, step = value_S.copy(), 1
        rows = np.flatnonzero(np.arange(len(value_S)) > self.start_S)
        while len(rows):
            for stop in range(len(rows), 0, -SOME_ROWS):  # from the end, so that totals are read before they change
                some = rows[max(stop - SOME_ROWS, 0) : stop]
                weight = _weight(self.time_S[some], self.time_S[some - step], half_life)
                total_S[some] += total_S[some - step] * weight
            step *= 2
            rows = rows[rows - self.start_S[rows] >= step]
        return total_S


def _latest(is_first_S: Flags) -> Integers:
    """For each row the last one so far that is a first."""
    return np.maximum.accumulate(np.where(is_first_S, np.arange(len(is_first_S)), 0))


def _weight(later: NDArray[Any], earlier: NDArray[Any], half_life: float | None) -> Floats | float:
    """What a row weighs at a later time."""
    if half_life is None:
        return 1.0
    with np.errstate(over="ignore"):  # an infinite age weighs nothing
        gap = later - earlier
        age = (gap if gap.dtype.kind == "f" else gap.view(np.uint64)) / half_life  # wraps around, and so is right
        weight: Floats = np.exp2(-age)
    return weight


@dataclass(frozen=True)
class PastLists:
    """The kept rows before each row of a log, as runs in one array: memory for N rows, not for all lists.

    Attributes:
        row_M: numbers of the kept rows, by key and time.
        start_N: where a row's past starts in them.
        stop_N: and where it ends.
    """

    row_M: Integers
    start_N: Integers
    stop_N: Integers

    def of(self, row_B: Integers) -> tuple[Integers, Integers]:
        """The past of some rows, oldest first: the length of each, (B,), and row numbers of all in a row, (L,)."""
        start_B = self.start_N[row_B]
        length_B = self.stop_N[row_B] - start_B
        skipped_B = np.cumsum(length_B) - length_B
        return length_B, self.row_M[np.arange(length_B.sum()) + np.repeat(start_B - skipped_B, length_B)]


def past_lists(key_N: Integers, time_N: Times, keep_N: Flags, longest: int) -> PastLists:
    """For each row the latest kept rows of the same key before it; rows of one instant in the order of the log.

    Args:
        key_N: keys, usually users.
        time_N: times; a row whose time is *missing* has no past and is in nobody's.
        keep_N: whether a row may be in a list.
        longest: how many rows a list holds at most.

    Example:
        >>> key, time = np.array([5, 6, 5, 5]), np.array([1, 1, 2, 3])
        >>> past = past_lists(key, time, np.array([True, True, False, True]), 10)
        >>> [past.of(np.array([row]))[1].tolist() for row in range(4)]
        [[], [], [0], [0]]
    """
    line = Timeline.of(key_N, time_N, has_time(time_N))
    kept_S = keep_N[line.row_S]
    before_S: Integers = np.cumsum(kept_S) - kept_S
    start_N, stop_N = np.zeros(len(key_N), np.int64), np.zeros(len(key_N), np.int64)
    stop_N[line.row_S] = before_S[line.instant_S]
    start_N[line.row_S] = before_S[line.start_S]
    return PastLists(line.row_S[kept_S], np.maximum(start_N, stop_N - longest), stop_N)
