"""Every column type: what the pipeline computes is what the scripted artefact computes, and what a slow oracle does.

Columns are fitted once per case by the real `fit`; hypothesis then draws raw values, which reach the artefact through
the very functions that a server copies (`export/bare.py`). Ids must be identical, floats equal up to one unit in the
last place.
"""

import functools
import io

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recdistill.data.fit import fit
from recdistill.export.bare import tensors
from recdistill.export.build import describe_inputs
from recdistill.spec.features import FeatureSpec
from tests.oracles import encoding as oracle

moderate = settings(max_examples=12)  # each example draws many values

BITS = {"Int8": 8, "Int16": 16, "Int32": 32, "Int64": 64, "UInt8": 8, "UInt16": 16, "UInt32": 32, "UInt64": 64}
DTYPES = {
    name: getattr(pl, name) for name in (*BITS, "Boolean", "Float16", "Float32", "Float64", "String", "Categorical")
}
WORDS = ["a", "b", "ab", "é", "日本", "\U0001f600", " a", "A", "0", "x" * 70, "-", "\n", "a\x00"]
WHOLE = [0, 1, 2, 3, 5, 7, 100]
TIES = [2**53 - 1.0, 2**53 * 1.0, -(2**53) + 1.0, 0.5, -0.0, 1e300, -1e300, 5e-324]


def known(dtype):
    """Values that the vocabulary of a case holds."""
    if dtype in ("String", "Categorical"):
        return WORDS
    if dtype == "Boolean":
        return [True]
    if dtype.startswith("Float"):
        return [float(v) for v in [*WHOLE, -1, -4]]
    low, high = limits(dtype)
    return [*WHOLE, high, high - 1, *([low + 1, low + 2, -1] if low else [])]


def limits(dtype):
    bits = BITS[dtype]
    return (0, 2**bits - 1) if dtype.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def raw_values(dtype):
    """Anything a column of the type can hold, with what is known and what is extreme drawn often."""
    often = st.sampled_from(known(dtype))
    if dtype in ("String", "Categorical"):
        return st.none() | st.just("") | often | st.text(max_size=12)
    if dtype == "Boolean":
        return st.none() | st.booleans()
    if dtype.startswith("Float"):
        width = int(dtype[5:])
        ties = [v for v in TIES if width == 64] + [-0.0, 0.5, float("nan"), float("inf"), -float("inf")]
        return st.none() | often | st.sampled_from(ties) | st.floats(width=width)
    low, high = limits(dtype)
    return st.none() | often | st.sampled_from([low, high]) | st.integers(low, high)


def columns(values):
    """Whole columns, mostly long ones: a single example then meets most kinds of values."""
    return st.lists(values, max_size=2) | st.lists(values, min_size=20, max_size=40)


def series(values, dtype):
    return pl.Series("raw", values, dtype=DTYPES[dtype] if isinstance(dtype, str) else dtype)


class Case:
    """One column, fitted on a training log, and its scripted module, saved and loaded again as an artefact is."""

    def __init__(self, column, train):
        spec = FeatureSpec.model_validate({"serving": {"typed": {"column": "raw", **column}}})
        fitted = fit(spec, pl.DataFrame([train]).lazy())
        self.column = fitted.columns["typed"]
        self.inputs = describe_inputs(("typed",), spec, fitted)
        saved = io.BytesIO()
        torch.jit.save(torch.jit.script(self.column.torch()), saved)
        saved.seek(0)
        self.script = torch.jit.load(saved)

    def pipeline(self, raw):
        """The encoded column by polars, as a list."""
        return pl.DataFrame([raw]).lazy().select(self.column.polars()).collect()["typed"]

    def artefact(self, raw):
        """The encoded column by TorchScript: a tensor, or values and lengths."""
        return self.ask(*tensors(pl.DataFrame([raw]).to_arrow(), self.inputs), len(raw))

    def ask(self, numbers, texts, lengths, rows):
        with torch.jit.optimized_execution(False):  # compiling each module anew would take most of the time
            return self._ask(numbers, texts, lengths, rows)

    def _ask(self, numbers, texts, lengths, rows):
        if self.column.kind == "float":
            return self.script(numbers, texts, lengths, rows)
        if self.column.kind == "bag":
            return self.script(numbers, texts, lengths, rows)
        return self.script(numbers, texts, lengths, rows)


def same_floats(expected, found):
    """Equal up to one unit in the last place of float32."""
    expected, found = np.asarray(expected, np.float32), np.asarray(found, np.float32)
    assert expected.shape == found.shape
    assert not np.isnan(found).any()
    bits = [x.view(np.int32).astype(np.int64) for x in (expected + 0.0, found + 0.0)]
    ordered = [np.where(b < 0, -(2**31) - b, b) for b in bits]
    assert np.abs(ordered[0] - ordered[1]).max(initial=0) <= 1


def same_lists(expected, found):
    values_L, lengths_B, weight_L = found
    assert lengths_B.tolist() == [len(bag) for bag in expected]
    assert values_L.tolist() == [row for bag in expected for row in bag]
    assert weight_L.numel() == 0


# Single values


@functools.cache
def single(dtype, hashed):
    return Case({"type": "categorical", "hash": 7 if hashed else None}, series(known(dtype), dtype))


def rows_of(dtype, hashed):
    return 7 if hashed else oracle.vocabulary(known(dtype), 1)


@pytest.mark.parametrize("hashed", [False, True], ids=["vocabulary", "hash"])
@pytest.mark.parametrize("dtype", DTYPES)
@moderate
@given(data=st.data())
def test_single_values_get_the_same_row_in_pipeline_and_artefact(dtype, hashed, data):
    values = data.draw(columns(raw_values(dtype)))
    case, raw = single(dtype, hashed), series(values, dtype)
    expected = [oracle.row(v, rows_of(dtype, hashed)) for v in raw.to_list()]
    assert case.pipeline(raw).to_list() == expected
    assert case.pipeline(raw).dtype == pl.Int32
    assert case.artefact(raw).tolist() == expected


@pytest.mark.parametrize("dtype", ["Int64", "UInt64", "Float64", "String"])
def test_a_vocabulary_row_is_found_for_every_known_value_and_no_other(dtype):
    case, values = single(dtype, False), known(dtype)
    assert sorted(case.pipeline(series(values, dtype))) == list(range(2, 2 + len(values)))
    strangers = {"Int64": [4, -(2**63)], "UInt64": [4, 2**63], "Float64": [4.0, 0.5], "String": ["c", ""]}[dtype]
    assert case.artefact(series(strangers, dtype)).tolist() == [1, 1 if dtype == "Float64" else 0]


# Lists

ELEMENTS = ["Int8", "Int32", "Int64", "UInt64", "Float32", "Float64", "Boolean", "String", "Categorical"]


@functools.cache
def bag(dtype, hashed, longest):
    train = series([known(dtype)], pl.List(DTYPES[dtype]))
    return Case({"type": "list", "hash": 7 if hashed else None, "max_length": longest}, train)


@pytest.mark.parametrize(("hashed", "longest"), [(False, None), (True, 2), (False, 1)])
@pytest.mark.parametrize("dtype", ELEMENTS)
@moderate
@given(data=st.data())
def test_lists_become_the_same_bags_in_pipeline_and_artefact(dtype, hashed, longest, data):
    lists = st.lists(raw_values(dtype), max_size=6)
    values = data.draw(columns(st.none() | st.just([]) | st.just([None, None]) | lists))
    case, raw = bag(dtype, hashed, longest), series(values, pl.List(DTYPES[dtype]))
    expected = [oracle.bag(v, rows_of(dtype, hashed), longest) for v in raw.to_list()]
    assert case.pipeline(raw).to_list() == expected
    assert case.pipeline(raw).dtype == pl.List(pl.Int32)
    same_lists(expected, case.artefact(raw))


SEPARATORS = [",", "||", " ", "é", "aa", "\U0001f600", "\n"]


@functools.cache
def split_text(separator, hashed, longest):
    train = series([separator.join(WORDS)], "String")
    return Case({"type": "list", "separator": separator, "hash": 7 if hashed else None, "max_length": longest}, train)


@pytest.mark.parametrize(("hashed", "longest"), [(False, None), (True, 3)])
@pytest.mark.parametrize("separator", SEPARATORS)
@moderate
@given(data=st.data())
def test_texts_are_cut_into_the_same_bags_in_pipeline_and_artefact(separator, hashed, longest, data):
    piece = st.sampled_from([separator, separator[0], separator * 2, *WORDS, ""]) | st.text(max_size=4)
    values = data.draw(columns(st.none() | st.lists(piece, max_size=8).map("".join)))
    case, raw = split_text(separator, hashed, longest), series(values, "String")
    rows = 7 if hashed else oracle.vocabulary(separator.join(WORDS).split(separator), 1)
    expected = [oracle.bag((v or "").split(separator), rows, longest) for v in values]
    assert case.pipeline(raw).to_list() == expected
    same_lists(expected, case.artefact(raw))


def test_bags_of_a_slice_of_a_log_are_those_of_its_rows():
    values = [[1, 2], None, [3], [], [5, None, 7], [100] * 5, None, [2]]
    case, raw = bag("Int64", False, None), series(values, pl.List(pl.Int64))
    table = pl.DataFrame([raw]).to_arrow()
    parts = [case.ask(*tensors(table.slice(start, 3), case.inputs), min(3, 8 - start)) for start in (0, 3, 6)]
    expected = [oracle.bag(v, rows_of("Int64", False)) for v in values]
    for start, part in zip((0, 3, 6), parts, strict=True):
        same_lists(expected[start : start + 3], part)


# Numbers

SHAPES = {
    "plain": {"scale": "none"},
    "standard": {},
    "minmax": {"scale": "minmax"},
    "clip": {"clip": [-2.5, 90], "scale": "none"},
    "log": {"log": True},
    "clip_log": {"clip": [0, 1e6], "log": True, "scale": "minmax"},
}
NUMBERS = ["Int8", "UInt32", "Int64", "UInt64", "Boolean", "Float16", "Float32", "Float64"]


def training_numbers(dtype):
    return series([v for v in known(dtype) if abs(v) < 2**40], dtype)


@functools.cache
def number(dtype, shape):
    return Case({"type": "numeric", **SHAPES[shape]}, training_numbers(dtype))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", NUMBERS)
@moderate
@given(data=st.data())
def test_numbers_are_scaled_alike_in_pipeline_and_artefact(dtype, shape, data):
    values = data.draw(columns(raw_values(dtype)))
    case, raw = number(dtype, shape), series(values, dtype)
    fitted = case.column
    options = {"clip": fitted.clip, "log": fitted.log, "shift": fitted.shift, "scale": fitted.scale}
    with np.errstate(over="ignore"):
        expected = np.array([oracle.scaled(v, **options) for v in raw.to_list()]).astype(np.float32)
        same_floats(case.pipeline(raw).to_numpy(), case.artefact(raw).numpy())
        same_floats(expected, case.pipeline(raw).to_numpy())
    assert case.pipeline(raw).dtype == pl.Float32


@pytest.mark.parametrize("dtype", ["Boolean", "Int8", "Float32"])
def test_binary_columns_as_inputs_are_centred_alike(dtype):
    case = Case({"type": "binary"}, series([1, 0, 0, 0], "Int8").cast(DTYPES[dtype]))
    raw = series([0, 1, None], "Int8").cast(DTYPES[dtype])
    same_floats([-0.25, 0.75, 0], case.pipeline(raw).to_numpy())
    same_floats([-0.25, 0.75, 0], case.artefact(raw).numpy())


@functools.cache
def buckets(dtype, count):
    return Case({"type": "numeric", "buckets": count}, training_numbers(dtype))


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("dtype", NUMBERS)
@moderate
@given(data=st.data())
def test_numbers_fall_into_the_same_bucket_in_pipeline_and_artefact(dtype, count, data):
    values = data.draw(columns(raw_values(dtype)))
    case, raw = buckets(dtype, count), series(values, dtype)
    expected = [oracle.bucket_row(v, case.column.cuts) for v in raw.to_list()]
    assert case.pipeline(raw).to_list() == expected
    assert case.artefact(raw).tolist() == expected


@moderate
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=30))
@example([0.0, -0.0, 1.0])
def test_a_value_on_a_cut_lies_above_it_on_both_sides(values):
    case = Case({"type": "numeric", "buckets": 6}, series(values, "Float64"))
    cuts = case.column.cuts
    around = [x for cut in cuts for x in (np.nextafter(cut, -np.inf), cut, np.nextafter(cut, np.inf)) if np.isfinite(x)]
    raw = series([*around, *values], "Float64")
    expected = [oracle.bucket_row(v, cuts) for v in raw.to_list()]
    assert case.pipeline(raw).to_list() == expected == case.artefact(raw).tolist()


# What all types share

EVERY_TYPE = {
    "vocabulary": ({"type": "id", "min_count": 1}, "Int64"),
    "hash": ({"type": "categorical", "hash": 5}, "Float64"),
    "text": ({"type": "categorical"}, "String"),
    "text hash": ({"type": "id", "hash": 5}, "String"),
    "list": ({"type": "list"}, pl.List(pl.Int64)),
    "text list": ({"type": "list", "hash": 5, "max_length": 2}, pl.List(pl.String)),
    "separated": ({"type": "list", "separator": ","}, "String"),
    "numeric": ({"type": "numeric"}, "Float64"),
    "buckets": ({"type": "numeric", "buckets": 3}, "Int64"),
    "edges": ({"type": "numeric", "edges": [0, 2.5]}, "Float32"),
    "date part": ({"type": "date_part", "part": "day", "zone": "Asia/Tokyo"}, "Int64"),
    "words": ({"type": "text", "hash": 5, "ngrams": 2}, "String"),
    "binary": ({"type": "binary"}, "Boolean"),
}


def train_of(dtype):
    if isinstance(dtype, pl.List):
        return series([known(str(dtype.inner))], dtype)
    return series(known(dtype), dtype)


@functools.cache
def of_type(name, empty):
    column, dtype = EVERY_TYPE[name]
    train = train_of(dtype)
    return Case(column, series([None] * 3, train.dtype) if empty else train)


@pytest.mark.parametrize("empty", [False, True], ids=["fitted", "fitted_on_nulls"])
@pytest.mark.parametrize("name", EVERY_TYPE)
def test_an_absent_column_is_a_column_of_missing_values(name, empty):
    case = of_type(name, empty)
    dtype = EVERY_TYPE[name][1]
    missing = case.pipeline(series([None] * 3, dtype)).to_list()
    assert missing == ([[0]] * 3 if case.column.kind == "bag" else [0] * 3)
    found = case.ask({}, {}, {}, 3)
    if case.column.kind == "bag":
        same_lists(missing, found)
    else:
        assert found.tolist() == missing


@pytest.mark.parametrize("empty", [False, True], ids=["fitted", "fitted_on_nulls"])
@pytest.mark.parametrize("name", EVERY_TYPE)
def test_no_rows_are_encoded_to_no_rows(name, empty):
    case = of_type(name, empty)
    raw = train_of(EVERY_TYPE[name][1]).clear()
    assert len(case.pipeline(raw)) == 0
    found = case.artefact(raw)
    assert [t.numel() for t in found] == [0, 0, 0] if case.column.kind == "bag" else found.numel() == 0


@pytest.mark.parametrize("name", EVERY_TYPE)
def test_values_that_a_column_of_nulls_has_not_taught_are_unknown_on_both_sides(name):
    case = of_type(name, empty=True)
    raw = train_of(EVERY_TYPE[name][1])
    encoded = case.pipeline(raw)
    found = case.artefact(raw)
    if case.column.kind == "bag":
        same_lists(encoded.to_list(), found)
    elif case.column.kind == "float":
        same_floats(encoded.to_numpy(), found.numpy())
    else:
        assert encoded.to_list() == found.tolist()
    if name in ("vocabulary", "text"):
        assert encoded.unique().to_list() == [1]


@pytest.mark.parametrize("name", EVERY_TYPE)
def test_encoding_row_by_row_is_encoding_all_rows(name):
    case = of_type(name, empty=False)
    raw = pl.concat([train_of(EVERY_TYPE[name][1])] * 2)
    assert [row for i in range(len(raw)) for row in case.pipeline(raw[i : i + 1]).to_list()] == case.pipeline(
        raw
    ).to_list()
