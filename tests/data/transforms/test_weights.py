"""Lists with weights: pipeline, artefact and a slow oracle agree; lists of different lengths are refused by both."""

import functools

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recdistill.data.encode import encode
from recdistill.errors import LogError
from recdistill.export.bare import tensors
from recdistill.export.serving import Pooled
from recdistill.spec.features import FeatureSpec
from tests.data.transforms.cases import Frame, frame_of, same_bags
from tests.data.transforms.test_parity import DTYPES, known, moderate, raw_values
from tests.oracles import encoding as oracle

WEIGHTS = {
    "Int64": st.none() | st.sampled_from([-(2**63), -1, 0, 1, 2**62]) | st.integers(-5, 5),
    "Float32": st.none() | st.sampled_from([float("nan"), float("inf"), -1.0, -0.0, 0.5]) | st.floats(width=32),
    "Float64": st.none() | st.floats(-1e30, 1e30),
    "Boolean": st.none() | st.booleans(),
}
OPTIONS = {"vocabulary": {}, "hash": {"hash": 7}, "last two": {"max_length": 2}}


def frame(values, weights, dtype, weight_dtype):
    return frame_of(raw=pl.Series(values, dtype=dtype), w=pl.Series(weights, dtype=pl.List(DTYPES[weight_dtype])))


@functools.cache
def case(dtype, weight_dtype, option):
    train = frame([known(dtype)], [[None] * len(known(dtype))], pl.List(DTYPES[dtype]), weight_dtype)
    return Frame({"type": "list", "column": "raw", "weights": "w", **OPTIONS[option]}, train)


@functools.cache
def separated(weight_dtype):
    train = frame(["a,b,é"], [[None] * 3], pl.String, weight_dtype)
    return Frame({"type": "list", "column": "raw", "weights": "w", "separator": ",", "max_length": 3}, train)


def agree(found, raw, expected):
    """Rows are those of the oracle, and so are weights, in float32."""
    encoded = found.pipeline(raw)
    bags, weights = [b for b, _ in expected], [np.array(w).astype(np.float32).tolist() for _, w in expected]
    assert encoded["typed"].to_list() == bags
    assert encoded["typed/weights"].to_list() == weights
    assert encoded.dtypes == [pl.List(pl.Int32), pl.List(pl.Float32)]
    same_bags(bags, found.artefact(raw), weights)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("weight_dtype", WEIGHTS)
@pytest.mark.parametrize("dtype", ["Int32", "UInt64", "Float64", "String"])
@moderate
@given(data=st.data())
def test_weighted_lists_become_the_same_bags_in_pipeline_and_artefact(dtype, weight_dtype, option, data):
    pairs = st.lists(st.tuples(raw_values(dtype), WEIGHTS[weight_dtype]), max_size=6)
    rows = data.draw(st.lists(st.none() | pairs, min_size=20, max_size=40) | st.just([]))
    values, weights = ([None if row is None else [pair[k] for pair in row] for row in rows] for k in (0, 1))
    raw = frame(values, weights, pl.List(DTYPES[dtype]), weight_dtype)
    vocabulary = 7 if option == "hash" else oracle.vocabulary(known(dtype), 1)
    longest = OPTIONS[option].get("max_length")
    expected = [oracle.weighted_bag(v, w, vocabulary, longest) for v, w in raw.rows()]
    agree(case(dtype, weight_dtype, option), raw, expected)


@moderate
@given(data=st.data())
def test_texts_that_a_separator_cuts_have_a_weight_for_each_piece(data):
    piece = st.sampled_from(["a", "b", "é", "new", ""])
    texts = st.lists(st.none() | st.lists(piece, max_size=5).map(",".join), min_size=20, max_size=40)
    values = data.draw(texts)
    pieces = [v.split(",") if v else [] for v in values]
    weights = [data.draw(st.lists(WEIGHTS["Float64"], min_size=len(p), max_size=len(p))) for p in pieces]
    expected = [
        oracle.weighted_bag(p, w, oracle.vocabulary(["a", "b", "é"], 1), 3)
        for p, w in zip(pieces, weights, strict=True)
    ]
    agree(separated("Float64"), frame(values, weights, pl.String, "Float64"), expected)


@pytest.mark.parametrize("mean", [True, False])
@moderate
@given(data=st.data())
def test_the_artefact_pools_by_weight(mean, data):
    lengths = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=8))
    rows = [data.draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)) for n in lengths]
    weight = st.sampled_from([0.0, 0.25, 1.0, 3.0])
    weights = [data.draw(st.lists(weight, min_size=n, max_size=n)) for n in lengths]
    table = torch.arange(40, dtype=torch.float32).reshape(10, 4) - 20
    flat = torch.tensor([r for bag in rows for r in bag]), torch.tensor([w for bag in weights for w in bag])
    found = torch.jit.script(Pooled(table, mean))(flat[0], torch.tensor(lengths), flat[1])
    sums = [sum(w * table[r].double() for r, w in zip(*pair, strict=True)) for pair in zip(rows, weights, strict=True)]
    totals = [sum(w) if mean else 1.0 for w in weights]
    expected = [s / t if t else torch.zeros(4) for s, t in zip(sums, totals, strict=True)]
    assert np.allclose(found, torch.stack(expected), rtol=1e-6)


UNEQUAL = {
    "fewer weights": ([[1, 2], [3]], [[0.5], [0.5]]),
    "the same number in all, but not in each": ([[1, 2], [3]], [[0.5], [0.5, 1.0]]),
    "no weights": ([[1], [3]], [None, [0.5]]),
    "no values": ([None, [3]], [[0.5], [0.5]]),
}


@pytest.mark.parametrize(("values", "weights"), UNEQUAL.values(), ids=UNEQUAL)
def test_lists_of_different_lengths_are_refused(tmp_path, values, weights):
    raw = frame([*values, *[[1]] * 60], [*weights, *[[1.0]] * 60], pl.List(pl.Int64), "Float64")
    raw.with_columns(y=pl.int_range(pl.len()) % 2).write_parquet(tmp_path / "log.parquet")
    spec = FeatureSpec.model_validate(
        {"serving": {"typed": {"type": "list", "column": "raw", "weights": "w"}}, "post_event": {"y": "binary"}}
    )
    with pytest.raises(LogError, match=r"typed: \d rows hold something else than one weight in 'w' for each value"):
        encode(spec, str(tmp_path / "log.parquet"), tmp_path / "encoded")
    found = case("Int32", "Float64", "hash")
    with pytest.raises(Exception, match="column w holds lists of weights of other lengths"):
        found.artefact(raw)


def test_an_empty_text_has_no_pieces_and_needs_no_weights(tmp_path):
    raw = frame(["a,b", "", None, ","], [[1.0, 2.0], [], None, [1.0, 1.0]], pl.String, "Float64")
    agree(separated("Float64"), raw, [([2, 3], [1.0, 2.0])] + [([0], [1.0])] * 3)
    pl.concat([raw] * 20).with_columns(y=pl.int_range(pl.len()) % 2).write_parquet(tmp_path / "log.parquet")
    declared = {"type": "list", "column": "raw", "weights": "w", "separator": ","}
    spec = FeatureSpec.model_validate({"serving": {"typed": declared}, "post_event": {"y": "binary"}})
    assert encode(spec, str(tmp_path / "log.parquet"), tmp_path / "encoded").views["serving"][1] == "typed/weights"


def test_weights_that_are_absent_count_as_0():
    found = case("Int32", "Float64", "vocabulary")
    raw = frame([[1, 1], []], [[1.0, 1.0], []], pl.List(pl.Int32), "Float64")
    numbers, texts, lengths = tensors(raw.to_arrow(), found.inputs)
    rows_L, lengths_B, weight_L = found.ask(
        {k: v for k, v in numbers.items() if k != "w"}, texts, {k: v for k, v in lengths.items() if k != "w"}, 2
    )
    assert lengths_B.tolist() == [2, 1] and weight_L.tolist() == [0, 0, 1] and rows_L[-1] == 0
