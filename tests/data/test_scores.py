"""Score files: what a member answered, read back by label, with groups as numbers."""

import numpy as np
import polars as pl
import pytest

from recdistill.data.scores import read_logits, read_scores, same_rows, sigmoid, write_scores
from recdistill.errors import RunError

NAN = float("nan")
ROWS = np.array([5, -3, 2**62, 0])
LABELS = {"buy": np.array([1, NAN, 0, 1], np.float32), "click": np.array([NAN, 1, 1, 0], np.float32)}
LOGITS = np.array([[0.5, -1], [2, 3], [-4, 0], [0, 90]], np.float32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "scores" / "student.test.parquet"


def write(path, groups=None, labels=LABELS):
    frame = None if groups is None else pl.DataFrame({"group": groups})
    write_scores(path, row_id_N=ROWS, labels=labels, logits_NK=LOGITS[:, : len(labels)], roles=frame)


def test_columns_are_named_by_label_and_scores_are_float32(path):
    write(path, ["a", "b", "a", None])
    frame = pl.read_parquet(path)
    assert frame.columns == ["row_id", "label", "logit", "score", "label.click", "logit.click", "score.click", "group"]
    assert {frame[name].dtype for name in ("label", "logit", "score", "score.click")} == {pl.Float32}
    assert frame["group"].to_list() == ["a", "b", "a", None]


@pytest.mark.parametrize(("label", "rows", "column"), [(None, [0, 2, 3], 0), ("click", [1, 2, 3], 1)])
def test_the_labelled_rows_of_a_label_are_read_back(path, label, rows, column):
    write(path)
    scored = read_scores(path, label)
    assert scored.row_id_N.tolist() == ROWS[rows].tolist()
    assert scored.label_N.tolist() == list(LABELS.values())[column][rows].tolist()
    assert scored.logit_N.tolist() == LOGITS[rows, column].tolist()
    assert scored.group_N is None


def test_all_logits_are_read_back_labelled_or_not(path):
    write(path)
    assert read_logits(path).tolist() == LOGITS.tolist()
    write(path, labels={"buy": LABELS["buy"]})
    assert read_logits(path).tolist() == LOGITS[:, :1].tolist()


@pytest.mark.parametrize(
    "groups", [["a", None, "b", "a"], [7, None, 9, 7], [True, None, False, True]], ids=["text", "number", "flag"]
)
def test_rows_of_a_group_share_a_number(path, groups):
    write(path, groups)
    number = read_scores(path).group_N.tolist()
    assert number[0] == number[2] != number[1]


def test_rows_of_no_group_are_alone_in_theirs(path):
    write(path, pl.Series([None, 1, None, None], dtype=pl.Int64))
    assert len(set(read_scores(path).group_N.tolist())) == 3


def test_probabilities_of_extreme_logits_are_the_ends_of_the_scale():
    assert sigmoid(np.array([0, 1000, -1000, 2], np.float32)).tolist() == [0.5, 1.0, 0.0, 1 / (1 + np.exp(-2.0))]


def test_score_files_of_other_rows_or_another_order_do_not_match(path):
    write(path)
    first = read_scores(path)
    assert same_rows(first, [read_scores(path)])
    assert not same_rows(first, [read_scores(path), read_scores(path, "click")])


@pytest.mark.parametrize("content", [None, b"no parquet", "other"], ids=["absent", "damaged", "other columns"])
@pytest.mark.parametrize("read", [read_scores, lambda path: read_scores(path, "none")])
def test_what_is_no_score_file_is_refused(path, content, read):
    path.parent.mkdir()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        pl.DataFrame({"a": [1]}).write_parquet(path)
    with pytest.raises(RunError, match="is no readable score file"):
        read(path)
