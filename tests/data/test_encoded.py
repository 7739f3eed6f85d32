"""Encoded logs read back: the same fitted columns, the same spec, and clear words for what is damaged."""

import shutil

import polars as pl
import pytest

from recdistill.data.encoded import EncodedLog, load_fitted, save_fitted, vocabulary_file
from recdistill.data.fit import fit
from recdistill.errors import LogError
from recdistill.spec.features import FeatureSpec
from tests.data.logs import encoded, raw, spec

DTYPES = [
    *(pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64),
    *(pl.Boolean, pl.Float16, pl.Float32, pl.Float64),
]


def same(one, two):
    """Whether two fitted columns are equal in every field."""
    first, second = vars(one), vars(two)
    plain = {key: value for key, value in first.items() if key != "rows"}
    assert type(one) is type(two)
    assert plain == {key: value for key, value in second.items() if key != "rows"}
    assert {type(value) for value in plain.values()} == {type(second[key]) for key in plain}
    rows = [state.get("rows") for state in (first, second)]
    assert type(rows[0]) is type(rows[1])
    if hasattr(rows[0], "values"):
        return rows[0].values.equals(rows[1].values, check_dtypes=True)
    return rows[0] == rows[1]


def reloaded(fitted, folder):
    save_fitted(fitted, folder)
    return load_fitted(folder)


def test_every_kind_of_fitted_column_is_read_back_equal(tmp_path):
    fitted = fit(spec(), raw(200).lazy())
    again = reloaded(fitted, tmp_path)
    assert list(again.columns) == list(fitted.columns)
    for name, column in fitted.columns.items():
        assert same(column, again.columns[name])
    assert again.tables == fitted.tables
    assert again.columns["seen"].rows is again.columns["tags"].rows


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "column",
    [{"type": "categorical"}, {"type": "numeric", "clip": [-1, 0.5]}, {"type": "numeric", "buckets": 2}],
    ids=str,
)
def test_fitted_columns_of_every_number_type_are_read_back_equal(tmp_path, dtype, column):
    made = FeatureSpec.model_validate({"serving": {"x": column}})
    fitted = fit(made, pl.DataFrame({"x": pl.Series([1, 0, 1]).cast(dtype)}).lazy())
    assert same(fitted.columns["x"], reloaded(fitted, tmp_path).columns["x"])


@pytest.mark.parametrize("values", [[None], ["", "ü\n", "a"], [5.0, 1e-300, -0.1]], ids=str)
def test_awkward_values_survive(tmp_path, values):
    dtype = pl.String if isinstance(values[-1], str | None) else pl.Float64
    column = {"type": "categorical"} if dtype == pl.String else {"type": "numeric", "clip": [-float("inf"), 4.9]}
    fitted = fit(
        FeatureSpec.model_validate({"serving": {"x": column}}),
        pl.DataFrame({"x": pl.Series(values, dtype=dtype)}).lazy(),
    )
    assert same(fitted.columns["x"], reloaded(fitted, tmp_path).columns["x"])


def test_a_vocabulary_is_written_once_under_a_name_that_any_table_may_have(tmp_path):
    serving = dict.fromkeys(("a", "A", "a/b", "../up", "%2F", "日本"), "categorical")
    serving["twin"] = {"type": "categorical", "vocabulary": "a/b", "column": "a"}
    fitted = fit(
        FeatureSpec.model_validate({"serving": serving}), pl.DataFrame({n: [1] for n in serving if n != "twin"}).lazy()
    )
    again = reloaded(fitted, tmp_path / "out")
    assert len(list((tmp_path / "out" / "vocabularies").iterdir())) == 6
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert vocabulary_file(tmp_path / "out", "../up").exists()
    assert again.columns["twin"].rows.values.to_list() == [1]


def test_an_encoded_log_is_opened_as_it_was_made(tmp_path):
    made = encoded(tmp_path)
    opened = EncodedLog.open(made.folder)
    assert (opened.spec, opened.rows, opened.views, opened.fingerprint) == (
        spec(),
        made.rows,
        made.views,
        made.fingerprint,
    )
    assert opened.views["labels"] == ["click", "buy", "group", "time"]


def test_a_folder_with_odd_letters_is_opened(tmp_path):
    made = encoded(tmp_path / "runs [1] {x} *")
    assert made.labels("test").collect().height == 20
    assert EncodedLog.open(made.folder).fitted.columns["city"].rows.count > 2


def test_groups_are_raw_and_in_the_order_of_the_rows(tmp_path):
    frame = raw(200)
    assert encoded(tmp_path / "a", frame=frame).roles("test")["group"].to_list() == frame["user"][180:].to_list()
    assert encoded(tmp_path / "b", frame=frame, group=None).roles("test").columns == []


DAMAGE = {
    "absent": lambda folder: shutil.rmtree(folder),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "cut manifest": lambda folder: (folder / "manifest.json").write_text('{"spec": '),
    "manifest without a spec": lambda folder: (folder / "manifest.json").write_text("{}"),
    "list as manifest": lambda folder: (folder / "manifest.json").write_text("[]"),
    "no fitted columns": lambda folder: (folder / "fitted.json").unlink(),
    "fitted columns of another kind": lambda folder: (folder / "fitted.json").write_text('{"x": {"fitted": "sound"}}'),
    "no vocabulary": lambda folder: vocabulary_file(folder, "city").unlink(),
    "damaged vocabulary": lambda folder: vocabulary_file(folder, "city").write_text("no"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_encoded_log_is_refused(tmp_path, damage):
    folder = encoded(tmp_path, rows=50).folder
    damage(folder)
    with pytest.raises(LogError, match="holds no encoded log"):
        EncodedLog.open(folder)


DERIVED = {
    "cross": {"type": "cross", "of": ["n", "s"], "hash": 9},
    "hour": {"type": "date_part", "part": "hour", "column": "n", "zone": "Europe/Berlin"},
    "day": {"type": "date_part", "part": "day", "column": "at"},
    "words": {"type": "text", "column": "s", "hash": 9, "ngrams": 2},
    "rare": {"type": "text", "column": "s", "hash": 9, "idf": True},
    "gone": {"type": "missing", "column": "at"},
    "none": {"type": "missing", "column": "l"},
    "cut": {"type": "numeric", "column": "n", "edges": [0, 1.5]},
}


def test_columns_of_times_texts_and_several_raw_columns_are_read_back_equal(tmp_path):
    frame = pl.DataFrame({"n": [0, 3, None], "s": ["a b", "", "a"], "l": [[1], [], None]}).with_columns(
        at=pl.Series([0, None, 5], dtype=pl.Datetime("ms", "Asia/Tokyo"))
    )
    fitted = fit(FeatureSpec.model_validate({"serving": DERIVED}), frame.lazy())
    again = reloaded(fitted, tmp_path)
    for name, column in fitted.columns.items():
        found, expected = (frame.lazy().select(c.polars()).collect() for c in (again.columns[name], column))
        assert found.equals(expected)
        assert again.columns[name].raw == column.raw and again.columns[name].lists == column.lists
        if column.kind != "bag":
            assert same(column, again.columns[name])
    assert again.tables == fitted.tables
