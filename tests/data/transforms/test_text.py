"""Columns of type ``text``: words, runs of words and their weights, byte for byte alike in pipeline and artefact."""

import functools
import math

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from recdistill.data.fit import same_rows
from recdistill.errors import LogError
from tests.data.transforms.cases import Frame, fitted, frame_of, same_bags
from tests.data.transforms.test_parity import moderate
from tests.oracles import encoding as oracle

BUCKETS = 1000
TRAIN = ["the cat sat", "The CAT", None, "", "!!", "日本 cat", "the the the"]
SHAPES = {
    "plain": {},
    "case": {"lower": False},
    "pairs": {"ngrams": 2},
    "long runs": {"ngrams": 5},
    "short": {"max_length": 2},
    "short runs": {"ngrams": 3, "max_length": 3},
    "one word": {"ngrams": 2, "max_length": 1},
}
PIECES = ["the", "THE", "Cat", "x1", "日本", "é", "É", "ß", "😀", "_", "-", "'", "don't", "3.14", "a" * 100, "  "]
SPACES = [" ", "\n", "\x00", "\x7f", "\x80", "\u2028", "\u00a0"]  # separators in ASCII, and none beyond
texts = st.none() | st.lists(st.sampled_from([*PIECES, *SPACES]), max_size=12).map("".join) | st.text(max_size=12)
columns = st.lists(texts, min_size=20, max_size=40) | st.lists(texts, max_size=2)


@functools.cache
def case(shape, idf):
    declared = {"type": "text", "column": "raw", "hash": BUCKETS, "idf": idf, **SHAPES[shape]}
    return Frame(declared, frame_of(raw=TRAIN))


def bag(text, shape):
    return oracle.text_bag(text, BUCKETS, **SHAPES[shape])


@pytest.mark.parametrize("shape", SHAPES)
@moderate
@given(values=columns)
@example(["a b", "", "a", " ", "b"])
@example(["a" * 300 + " b", "A", None])
@example([])
def test_texts_become_the_same_bags_in_pipeline_and_artefact(shape, values):
    found, raw = case(shape, False), frame_of(raw=pl.Series(values, dtype=pl.String))
    expected = [bag(v, shape) for v in values]
    assert found.encoded(raw) == expected
    assert found.pipeline(raw).columns == ["typed"]
    assert found.pipeline(raw)["typed"].dtype == pl.List(pl.Int32)
    same_bags(expected, found.artefact(raw))


@pytest.mark.parametrize("shape", SHAPES)
@moderate
@given(values=columns)
def test_rare_words_weigh_more_as_the_training_rows_show_it(shape, values):
    found, raw = case(shape, True), frame_of(raw=pl.Series([*values, *TRAIN], dtype=pl.String))
    bags, weight = [bag(v, shape) for v in raw["raw"]], oracle.idf([bag(v, shape) for v in TRAIN])
    encoded = found.pipeline(raw)
    assert encoded["typed"].to_list() == bags
    assert encoded["typed/weights"].dtype == pl.List(pl.Float32)
    weights = encoded["typed/weights"].to_list()
    expected = [[weight(r) for r in b] for b in bags]
    assert [len(w) for w in weights] == [len(w) for w in expected]
    assert np.allclose(np.concatenate(weights), np.concatenate(expected), rtol=1e-6, atol=0)
    same_bags(bags, found.artefact(raw), weights)


def test_weights_are_those_of_the_formula():
    found = case("plain", True).pipeline(frame_of(raw=["the cat", "new", ""]))["typed/weights"].to_list()
    assert found[0] == pytest.approx([math.log(8 / 4) + 1, math.log(8 / 4) + 1])  # 7 rows, 3 with each word
    assert found[1] == pytest.approx([math.log(8) + 1])
    assert found[2] == [1]


def test_letters_beyond_ascii_keep_their_case_and_unicode_spaces_separate_nothing():
    found = case("plain", False).encoded(frame_of(raw=["A É", "a é", "a É", "a\u00a0b", "a b"]))
    assert found[0] == found[2] and found[0] != found[1]
    assert len(found[3]) == 1 and len(found[4]) == 2


def test_a_word_that_occurs_twice_is_held_twice_and_no_word_goes_on_in_the_next_row():
    found = case("pairs", False).encoded(frame_of(raw=["the the", "the", "the"]))
    assert found[0][0] == found[0][1] == found[1][0] == found[2][0]
    assert [len(b) for b in found] == [3, 1, 1]


@pytest.mark.parametrize("dtype", [pl.Categorical, pl.Enum(["a b", "c"])])
def test_all_text_types_are_texts(dtype):
    found, raw = case("plain", True), frame_of(raw=pl.Series(["a b", None, "c"], dtype=dtype))
    plain = raw.cast(pl.String)
    assert found.pipeline(raw).equals(found.pipeline(plain))
    weights = found.pipeline(plain)["typed/weights"].to_list()
    same_bags(found.encoded(plain), found.artefact(raw), weights)


def test_a_slice_or_several_chunks_of_texts_are_their_rows():
    values = [f"word{i % 7} and {'é' * (i % 3)}" for i in range(40)]
    whole, found = frame_of(raw=values), case("pairs", True)
    expected = found.pipeline(whole)
    assert found.pipeline(whole[7:23]).equals(expected[7:23])
    assert found.pipeline(pl.concat([whole[:11], whole[11:]], rechunk=False)).equals(expected)


@pytest.mark.parametrize("idf", [False, True])
def test_a_column_that_is_absent_is_missing_in_all_rows(idf):
    same_bags([[0], [0]], case("plain", idf).ask({}, {}, {}, 2), [[1.0], [1.0]] if idf else None)
    same_bags([], case("plain", idf).ask({}, {"raw": []}, {}, 0))


def test_a_column_of_nulls_teaches_no_weights():
    found = fitted({"type": "text", "column": "raw", "idf": True, "hash": 9}, frame_of(raw=pl.Series([None, ""])))
    assert found.weight_V.tolist() == [1, 1, *[pytest.approx(math.log(3) + 1)] * 9]


@pytest.mark.parametrize("values", [[1], [["a"]], [1.0]])
def test_raw_columns_that_hold_no_texts_are_refused(values):
    with pytest.raises(LogError, match=r"typed: expected texts, found .*; cast the column in the log"):
        fitted({"type": "text", "column": "raw", "idf": True}, frame_of(raw=values))


def test_rows_of_another_run_stand_for_the_same_words_if_they_are_hashed_alike():
    def text(**options):
        return fitted({"type": "text", "column": "raw", "hash": 9, **options}, frame_of(raw=["a"]))

    assert same_rows(text(ngrams=2, idf=True), text()).tolist() == list(range(11))
    for other in (text(hash=8), text(lower=False)):
        with pytest.raises(LogError, match="is encoded differently"):
            same_rows(other, text())


def test_the_artefact_keeps_weights_as_numbers_of_the_student():
    assert [b.numel() for b in case("plain", True).column.torch().buffers()] == [2 + BUCKETS]
    assert torch.is_floating_point(next(case("plain", True).column.torch().buffers()))
