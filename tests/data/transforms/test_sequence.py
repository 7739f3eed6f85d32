"""Ordered sequences: pipeline and artefact agree with each other and with a slow oracle, on values and on time gaps."""

import functools
import io

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recdistill.data.fit import fit
from recdistill.errors import LogError, SpecError
from recdistill.export.bare import tensors
from recdistill.export.build import describe_inputs
from recdistill.spec.features import FeatureSpec
from recdistill.spec.load import parse_feature_spec

INT_MIN = -(2**63)
KNOWN = [1, 2, 3, 7]
moderate = settings(max_examples=40)


class Case:
    def __init__(self, options: dict[str, object], *, texts: bool, times: bool) -> None:
        column = {"type": "sequence", "column": "raw", **options} | ({"times": "then"} if times else {})
        spec = FeatureSpec.model_validate({"serving": {"typed": column}} | ({"time": "now"} if times else {}))
        values = [[str(k) for k in KNOWN]] if texts else [KNOWN]
        train = pl.DataFrame({"raw": values, "then": [[1, 2, 3, 4]], "now": [5]})
        if options.get("separator"):
            train = train.with_columns(pl.col("raw").list.join(str(options["separator"])))
        fitted = fit(spec, train.lazy())
        self.column, self.schema = fitted.columns["typed"], train.schema
        self.inputs = describe_inputs(("typed",), spec, fitted)
        saved = io.BytesIO()
        torch.jit.save(torch.jit.script(self.column.torch()), saved)
        saved.seek(0)
        self.script = torch.jit.load(saved)

    def both(self, frame: pl.DataFrame) -> tuple[list[list[int]], list[list[int]] | None]:
        """Rows and gaps, after checking that pipeline and artefact agree on them."""
        encoded = frame.lazy().select(self.column.polars()).collect()
        values_L, lengths_B, gaps_L = self.script(*tensors(frame.to_arrow(), self.inputs), len(frame))
        found = encoded["typed"].to_list()
        assert lengths_B.tolist() == [len(row) for row in found]
        assert values_L.tolist() == [value for row in found for value in row]
        if "typed/gaps" not in encoded.columns:
            assert gaps_L.numel() == 0
            return found, None
        gaps = encoded["typed/gaps"].to_list()
        assert gaps_L.tolist() == [gap for row in gaps for gap in row]
        return found, gaps


@functools.cache
def case(texts: bool, times: bool, side: str, longest: int, separator: str | None = None) -> Case:
    options = {"side": side, "max_length": longest} | ({"separator": separator} if separator else {})
    return Case(options, texts=texts, times=times)


def expected(values, times, now, side, longest):
    """Rows and gaps of one row of the log, one value at a time."""
    rows, gaps = [], []
    for value, then in zip(values or [], times or [None] * len(values or []), strict=True):
        if value in (None, "", INT_MIN):
            continue
        rows.append(2 + KNOWN.index(int(value)) if str(value) in map(str, KNOWN) else 1)
        known = then not in (None, INT_MIN) and now not in (None, INT_MIN)
        wrapped = ((then - now) + 2**63) % 2**64 - 2**63 if known else 0
        gaps.append(2 + max(0, -wrapped).bit_length() if known and wrapped != INT_MIN else 2 if known else 0)
    cut = slice(-longest, None) if side == "last" else slice(longest)
    return rows[cut], gaps[cut]


integers = st.none() | st.sampled_from([*KNOWN, 0, -1, INT_MIN]) | st.integers(-(2**63), 2**63 - 1)
moments = st.none() | st.sampled_from([0, 1, INT_MIN, 2**63 - 1]) | st.integers(-(2**62), 2**62)


@pytest.mark.parametrize("side", ["last", "first"])
@pytest.mark.parametrize("longest", [1, 3])
@moderate
@given(data=st.data())
def test_numbers_with_gaps(side: str, longest: int, data: st.DataObject) -> None:
    pairs = data.draw(st.lists(st.none() | st.lists(st.tuples(integers, moments), max_size=6), min_size=1, max_size=8))
    now = data.draw(st.lists(moments, min_size=len(pairs), max_size=len(pairs)))
    c = case(False, True, side, longest)
    values = [None if p is None else [v for v, _ in p] for p in pairs]
    times = [None if p is None else [t for _, t in p] for p in pairs]
    found, gaps = c.both(pl.DataFrame({"raw": values, "then": times, "now": now}, schema=c.schema))
    reference = [expected(v, t, n, side, longest) for v, t, n in zip(values, times, now, strict=True)]
    assert found == [rows for rows, _ in reference]
    assert gaps == [gap for _, gap in reference]


@pytest.mark.parametrize("separator", [None, ","])
@moderate
@given(data=st.data())
def test_texts(separator: str | None, data: st.DataObject) -> None:
    words = st.sampled_from(["1", "2", "7", "x", "", "é"]) | (st.none() if separator is None else st.just("3"))
    lists = data.draw(st.lists(st.none() | st.lists(words, min_size=1, max_size=5), min_size=1, max_size=6))
    c = case(True, False, "last", 3, separator)
    raw = lists if separator is None else [None if row is None else separator.join(row) for row in lists]
    schema = {"raw": c.schema["raw"]}
    found, gaps = c.both(pl.DataFrame({"raw": raw}, schema=schema))
    assert found == [expected(row, None, None, "last", 3)[0] for row in lists]
    assert gaps is None


def test_a_caller_may_leave_the_column_out_and_the_times() -> None:
    c = case(False, True, "last", 3)
    assert [t.tolist() for t in c.script({}, {}, {}, 2)] == [[], [0, 0], []]
    numbers = {"raw": torch.tensor([1, 2, 3])}
    found = c.script(numbers, {}, {"raw": torch.tensor([2, 1])}, 2)
    assert [t.tolist() for t in found] == [[2, 3, 4], [2, 1], [0, 0, 0]]


def test_times_of_another_number_are_refused_by_the_artefact() -> None:
    numbers = {"raw": torch.tensor([1, 2]), "then": torch.tensor([1]), "now": torch.tensor([1])}
    with pytest.raises(torch.jit.Error, match="another number of times"):
        case(False, True, "last", 3).script(numbers, {}, {"raw": torch.tensor([2])}, 1)


def test_what_a_sequence_needs_is_said() -> None:
    with pytest.raises(SpecError, match=r"typed\.times: gaps are counted from the row's time; add `time: <column>`"):
        parse_feature_spec({"serving": {"typed": {"type": "sequence", "times": "then"}}}, "spec")
    spec = FeatureSpec.model_validate({"serving": {"typed": {"type": "sequence"}}})
    with pytest.raises(LogError, match="typed: expected a list, found Int64"):
        fit(spec, pl.DataFrame({"typed": [1]}).lazy())
    timed = FeatureSpec.model_validate({"time": "now", "serving": {"typed": {"type": "sequence", "times": "then"}}})
    with pytest.raises(LogError, match="gaps are differences of integers, but 'now' holds Float64"):
        fit(timed, pl.DataFrame({"typed": [[1]], "then": [[1]], "now": [1.5]}).lazy())
