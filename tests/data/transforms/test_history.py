"""History columns: what the artefact looks up is what the pipeline has encoded, for any keys and any fresher value."""

import functools
import io
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recdistill.data.encode import encode
from recdistill.data.encoded import load_fitted
from recdistill.data.fit import FittedSpec
from recdistill.data.replay import with_lookups
from recdistill.export.bare import tensors
from recdistill.export.build import describe_inputs
from recdistill.spec.features import FeatureSpec
from tests.data.transforms.test_parity import DTYPES, columns, known, moderate, raw_values, same_floats, series

SHAPES = {
    "count": {"half_life": 7.0},
    "rate": {"of": "y", "prior": 2.0},
    "compressed": {"of": "y", "value": "count", "scale": "minmax", "log": True},
}


class Case:
    """A history column of raw keys ``a`` and ``b``, learned from a log, and its scripted module, loaded again."""

    def __init__(self, dtype, shape, log=None):
        keys = known(dtype)
        rows = 6 * len(keys)
        frame = {
            "t": np.arange(rows),
            "a": series((keys * 6)[:rows], dtype),
            "b": pl.Series(["x", None, "é"] * (rows // 3), dtype=pl.Categorical),
            "y": np.arange(rows) % 5 % 2,
        }
        column = {"type": "history", "keys": ["a", "b"], **SHAPES[shape]}
        spec = FeatureSpec.model_validate({"time": "t", "serving": {"h": column}, "post_event": {"y": "binary"}})
        with tempfile.TemporaryDirectory() as folder:
            pl.DataFrame(frame if log is None else log).write_parquet(Path(folder) / "log.parquet")
            self.encoded = encode(spec, str(Path(folder) / "log.parquet"), Path(folder) / "out")
            self.fitted = load_fitted(Path(folder) / "out")
            self.test = self.encoded.view("test", "serving").collect()["h"]
        self.frame = pl.DataFrame(frame if log is None else log)
        self.inputs = describe_inputs(("h",), spec, self.fitted)
        saved = io.BytesIO()
        torch.jit.save(torch.jit.script(self.fitted.columns["h"].torch()), saved)
        saved.seek(0)
        self.script = torch.jit.load(saved)

    def pipeline(self, frame):
        found = with_lookups(frame.lazy(), FittedSpec(self.fitted.columns))
        return found.select(self.fitted.columns["h"].polars()).collect()["h"].to_numpy()

    def artefact(self, frame):
        return self.ask(*tensors(frame.to_arrow(), self.inputs), len(frame))

    def ask(self, numbers, texts, lengths, rows):
        with torch.jit.optimized_execution(False):
            return self.script(numbers, texts, lengths, rows).numpy()


@functools.cache
def case(dtype="Int64", shape="count"):
    return Case(dtype, shape)


TEXTS = st.none() | st.sampled_from(["x", "é", "", "new"])


def keyed(rows, dtype):
    return pl.DataFrame(
        [series([a for a, _ in rows], dtype).alias("a"), pl.Series("b", [b for _, b in rows], pl.String)]
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@moderate
@given(data=st.data())
def test_any_keys_are_looked_up_alike_in_pipeline_and_artefact(dtype, shape, data):
    frame = keyed(data.draw(columns(st.tuples(raw_values(dtype), TEXTS))), dtype)
    found = case(dtype, shape).pipeline(frame)
    assert found.dtype == np.float32
    same_floats(found, case(dtype, shape).artefact(frame))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_artefact_answers_what_the_test_rows_were_encoded_to(dtype, shape):
    made = case(dtype, shape)
    rows = made.frame.tail(len(made.test)).drop("t", "y")
    assert len(set(made.test.to_list())) > 1 or dtype == "Boolean"
    same_floats(made.test.to_numpy(), made.artefact(rows))
    same_floats(made.test.to_numpy(), np.concatenate([made.artefact(rows[i]) for i in range(len(rows))]))


def test_the_order_of_keys_matters_and_what_they_are_called_does_not():
    made = case("String", "rate")
    straight = pl.DataFrame({"a": ["é", "x"], "b": ["x", "é"]})
    assert made.artefact(straight).tolist() != made.artefact(straight.reverse()).tolist()


FRESH = st.none() | st.floats() | st.sampled_from([0.0, -1.0, 3.0, 1e9])


@moderate
@given(columns(st.tuples(st.integers(0, 9), TEXTS, FRESH)), st.sampled_from(list(SHAPES)))
def test_a_fresher_value_takes_the_place_of_the_known_one_unless_it_is_missing(rows, shape):
    frame = keyed([row[:2] for row in rows], "Int64")
    fresh = frame.with_columns(h=pl.Series([row[2] for row in rows], dtype=pl.Float64))
    made = case("Int64", shape)
    with np.errstate(over="ignore"):
        expected, found, plain = made.pipeline(fresh), made.artefact(fresh), made.artefact(frame)
    same_floats(expected, found)
    for row, value, known_value in zip(rows, found, plain, strict=True):
        if row[2] is None or not np.isfinite(row[2]):
            assert value == known_value


def test_fresher_counts_may_be_integers():
    frame, made = keyed([(1, "x"), (2, "x")], "Int64"), case("Int64", "compressed")
    counts = frame.with_columns(h=pl.Series([4, None], dtype=pl.Int32))
    same_floats(made.pipeline(counts), made.artefact(counts))
    numbers, texts, lengths = tensors(frame.to_arrow(), made.inputs)
    same_floats(made.pipeline(counts), made.ask({**numbers, "h": torch.tensor([4, -(2**63)])}, texts, lengths, 2))


@pytest.mark.parametrize("dtype", ["Int64", "Float32", "String"])
def test_absent_keys_are_missing_ones(dtype):
    made = case(dtype)
    for absent in (["a"], ["b"], ["a", "b"]):
        given_keys = keyed([(known(dtype)[0], "x")] * 3, dtype)
        missing = given_keys.with_columns(pl.lit(None, given_keys[name].dtype).alias(name) for name in absent)
        numbers, texts, lengths = tensors(given_keys.drop(absent).to_arrow(), made.inputs)
        same_floats(made.pipeline(missing), made.ask(numbers, texts, lengths, 3))


def test_rows_with_missing_keys_have_a_history_together():
    log = {"t": np.arange(40), "a": [None, 5] * 20, "b": [None, "x", "", "x"] * 10, "y": [0, 1] * 20}
    made = Case("Int64", "rate", log)
    assert len(made.fitted.columns["h"].snapshot) == 2
    assert made.artefact(pl.DataFrame({"a": [None, 5], "b": [None, "x"]}, {"a": pl.Int64, "b": pl.String}))[0] < 0


def test_what_nothing_is_known_of_is_the_same_for_all_keys():
    log = {
        "t": np.arange(40),
        "a": np.arange(40),
        "b": ["x"] * 40,
        "y": pl.Series([None] * 32 + [0] * 8, dtype=pl.Int8),
    }
    made = Case("Int64", "rate", log)
    assert len(made.fitted.columns["h"].snapshot) == 0
    assert made.artefact(pl.DataFrame({"a": [1, 99], "b": ["x", "x"]})).tolist() == [0.0, 0.0]
    assert made.test.to_list() == [0.0] * 4


@pytest.mark.parametrize("shape", SHAPES)
def test_no_rows_are_encoded_to_no_rows(shape):
    frame = keyed([], "Int64")
    assert len(case("Int64", shape).pipeline(frame)) == len(case("Int64", shape).artefact(frame)) == 0
    assert case("Int64", shape).ask({}, {}, {}, 0).shape == (0,)


def test_the_artefact_describes_its_keys_and_the_fresher_value():
    inputs = {entry["name"]: entry for entry in case("Float32", "rate").inputs}
    assert list(inputs) == ["a", "b", "h"]
    assert [(e["kind"], e.get("optional", False)) for e in inputs.values()] == [
        ("float", False),
        ("text", False),
        ("float", True),
    ]
    assert inputs["a"]["feeds"][0]["unknown"].startswith("without past rows: 0.")
