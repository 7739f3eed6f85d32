"""Encoded logs: the right rows in the right order, learned from training rows alone, the same bytes every time."""

import json
import os
import stat

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from recdistill.data import encode as module
from recdistill.data.encode import encode, fingerprint_of
from recdistill.data.encoded import EncodedLog
from recdistill.data.log import open_log, with_split
from recdistill.data.reader import Reader, Selection
from recdistill.errors import LogError
from tests.data.logs import COLUMNS, encoded, one_column, raw, spec, write

SPLITS = ("train", "valid", "test")
VIEWS = ("serving", "post_event", "labels")


def contents(folder):
    """Every file below a folder with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


@pytest.fixture
def small_groups(monkeypatch):
    """Row groups of 16 rows, shards of 48, chunks of 40: sizes that do not divide each other."""
    monkeypatch.setattr(module, "GROUP_ROWS", 16)
    monkeypatch.setattr(module, "SHARD_ROWS", 48)
    monkeypatch.setattr(module, "CHUNK_ROWS", 40)


@pytest.fixture
def simple(tmp_path):
    """A function that encodes a log of ``t``, ``x`` and ``y`` by a spec with one column."""

    def run(x, y=None, column="categorical", where=None, **values):
        rows = len(x)
        others = {k: values.pop(k) for k in list(values) if isinstance(values[k], pl.Series)}
        frame = {"t": np.arange(rows), "x": x, "y": np.arange(rows) % 2 if y is None else y, **others}
        path = write(frame, tmp_path / "log.parquet")
        return encode(one_column(column, **values), path, tmp_path / "out", where=where)

    return run


# What is written


def test_every_view_of_every_split_holds_its_rows_in_the_order_of_the_log(tmp_path):
    log = encoded(tmp_path)
    frame = with_split(open_log(log.spec, str(tmp_path / "raw" / "log.parquet")), log.spec)
    assert log.rows == {"train": 160, "valid": 20, "test": 20, "left_out": 0}
    for split in SPLITS:
        rows = frame.filter(pl.col("__split__") == split)
        expected = rows.select(row_id="__row_id__").collect()["row_id"]
        for view, names in (("serving", log.spec.serving), ("post_event", log.spec.post_event)):
            found = log.view(split, view).collect()
            assert found.columns == ["row_id", *names]
            assert found["row_id"].to_list() == expected.to_list()
            for name in names:
                direct = rows.select(log.fitted.columns[name].polars()).collect()[name]
                assert found[name].to_list() == direct.to_list()
                assert found[name].dtype == direct.dtype


def test_labels_and_roles_travel_raw(tmp_path):
    rows = raw(100).with_columns(
        weight=pl.int_range(100) / 8,
        scene=pl.Series(["a", None] * 50),
        score=pl.lit(0.25),
        buy=pl.col("buy").cast(pl.Float64),
    )
    log = encoded(tmp_path, frame=rows, weight="weight", scenario="scene", reference=["score"])
    found = pl.concat([log.labels(split).collect() for split in SPLITS])
    assert found.columns == ["row_id", "click", "buy", "reference:score", "weight", "group", "time", "scenario"]
    assert found["buy"].to_list() == rows["buy"].to_list()
    assert 0 < found["buy"].null_count() < 100
    assert found["click"].to_list() == rows["click"].to_list()
    assert found["weight"].to_list() == rows["weight"].to_list()
    assert (found["click"].dtype, found["weight"].dtype, found["reference:score"].dtype) == (pl.Float32,) * 3
    for role, source in (("group", "user"), ("time", "time_ms"), ("scenario", "scene")):
        assert found[role].to_list() == rows[source].to_list()
        assert found[role].dtype == rows[source].dtype


@pytest.mark.parametrize("dtype", [pl.Boolean, pl.Int8, pl.UInt64, pl.Float32, pl.Float64])
def test_labels_of_any_number_type_are_floats_with_nulls(simple, dtype):
    y = pl.Series([1, 0, None, 1] * 10, dtype=pl.Int8).cast(dtype)
    assert simple(range(40), y).labels("test").collect()["y"].to_list() == [1, 0, None, 1]


def test_a_label_that_is_nan_is_not_known(simple):
    y = [1.0, 0.0, float("nan"), float("inf")] * 10
    assert simple(range(40), y).labels("test").collect()["y"].to_list() == [1, 0, None, None]


def test_rows_in_no_range_of_the_split_are_left_out_and_counted(simple):
    split = {"column": "t", "train": [0, 4], "valid": [6, 7], "test": [10, 19]}
    log = simple(range(20), split=split)
    assert log.rows == {"train": 5, "valid": 2, "test": 10, "left_out": 3}
    assert log.labels("valid").collect()["row_id"].to_list() == [6, 7]


def test_a_filter_drops_rows_before_anything_is_learned(simple):
    log = simple([0, 1] * 20, where={"x": 1})
    assert log.rows == {"train": 16, "valid": 2, "test": 2, "left_out": 0}
    assert log.fitted.columns["x"].rows.values.to_list() == [1]
    assert log.labels("test").collect()["row_id"].to_list() == [37, 39]


@pytest.mark.usefixtures("small_groups")
def test_a_group_of_texts_with_codes_survives_several_chunks(simple):
    names = [f"user {i % 37}" for i in range(400)]
    log = simple(range(400), group="g", g=pl.Series(names, dtype=pl.Categorical))
    found = pl.concat([log.labels(split).collect()["group"].cast(pl.String) for split in SPLITS])
    assert found.to_list() == names


ODD_NAMES = [
    "a b",
    "a.b",
    "a",
    "a/b",
    "ü",
    "日本 \U0001f600",
    ".x",
    "[0]",
    "{x}",
    "%41",
    "'\"`",
    "\\",
    "a\nb",
    "",
    "Tags.list.element",
]


def test_columns_may_be_called_anything(tmp_path):
    rng = np.random.default_rng(0)
    frame = {"t": np.arange(50), "y": np.arange(50) % 2} | {name: rng.integers(0, 5, 50) for name in ODD_NAMES}
    serving = {name: {"type": "categorical"} for name in ODD_NAMES} | {
        f"{name}/mean": {"type": "numeric", "column": name} for name in ODD_NAMES if name
    }
    made = one_column("id", serving=serving)
    log = encode(made, write(frame, tmp_path / "log.parquet"), tmp_path / "out")
    batch = next(Reader(log, ("train",), Selection(tuple(serving), labels=("y",))).in_order(40))
    for name in ODD_NAMES:
        values = log.fitted.columns[name].rows.values.to_list()
        assert [values[row - 2] for row in batch.serving.ids((name,))[0].tolist()] == frame[name][:40].tolist()
    assert batch.serving.floats(tuple(name for name in serving if name.endswith("/mean"))).shape == (
        40,
        len(ODD_NAMES) - 1,
    )


# Learned from training rows


def test_held_out_rows_teach_nothing(tmp_path):
    frame = raw(300)
    late = pl.int_range(300) >= 240
    other = raw(300, seed=9).with_columns(pl.col("user") + 10_000, pl.col("price") * 1e6, city=pl.lit("Atlantis"))
    columns = ["user", "city", "tags", "words", "price", "dwell_ms", "seen", "click"]
    changed = frame.with_columns(
        pl.when(late).then(other[name]).otherwise(pl.col(name)).alias(name) for name in columns
    )
    assert not changed.equals(frame)
    first, second = encoded(tmp_path / "a", frame=frame), encoded(tmp_path / "b", frame=changed)
    one, two = contents(first.folder), contents(second.folder)
    learned = [name for name in one if name == "fitted.json" or name.startswith(("vocabularies/", "train/"))]
    assert len(learned) == 1 + 3 + 3
    for name in learned:
        assert one[name] == two[name]
    assert one["test/serving-00000.parquet"] != two["test/serving-00000.parquet"]


def test_training_rows_do_teach(tmp_path):
    frame = raw(300)
    changed = frame.with_columns(pl.when(pl.int_range(300) == 0).then(1e7).otherwise("price").alias("price"))
    first, second = encoded(tmp_path / "a", frame=frame), encoded(tmp_path / "b", frame=changed)
    assert first.fitted.columns["price"].scale != second.fitted.columns["price"].scale


def test_other_splits_may_be_fitted_on_as_well(tmp_path):
    path = write({"t": np.arange(20), "x": [0] * 16 + [1] * 2 + [2] * 2, "y": [0, 1] * 10}, tmp_path / "log.parquet")
    known = {}
    for fit_on in (("train",), ("train", "valid"), ("train", "valid", "test")):
        log = encode(one_column("categorical"), path, tmp_path / "-".join(fit_on), fit_on=fit_on)
        known[fit_on] = log.fitted.columns["x"].rows.values.to_list()
    assert list(known.values()) == [[0], [0, 1], [0, 1, 2]]


def test_values_of_held_out_rows_are_unknown(simple):
    log = simple([0] * 16 + [0, 1] + [2, 0])
    assert log.view("valid", "serving").collect()["x"].to_list() == [2, 1]
    assert log.view("test", "serving").collect()["x"].to_list() == [1, 2]


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("numeric", pl.Series([0.1] * 40), 0.0),
        ("numeric", pl.Series([None] * 40, dtype=pl.Float64), 0.0),
        ({"type": "numeric", "scale": "minmax"}, pl.Series([3] * 40), 0.0),
        ({"type": "numeric", "buckets": 5}, pl.Series([3] * 40), 2),
        ({"type": "numeric", "buckets": 5}, pl.Series([None] * 40, dtype=pl.Int8), 0),
        ("categorical", pl.Series(["a"] * 40), 2),
        ("categorical", pl.Series([None] * 40, dtype=pl.String), 0),
        ("categorical", pl.Series([""] * 40), 0),
        ({"type": "id", "hash": 4}, pl.Series([None] * 40, dtype=pl.Int64), 0),
        ("list", pl.Series([[]] * 40, dtype=pl.List(pl.Int64)), [0]),
        ("binary", pl.Series([True] * 40), 0.0),
    ],
    ids=str,
)
def test_constant_and_unknown_columns_are_encoded(simple, column, values, expected):
    log = simple(values, column=column)
    for split in SPLITS:
        assert log.view(split, "serving").collect()["x"].to_list() == [expected] * log.rows[split]


# Columns fitted before


def test_with_columns_fitted_before_nothing_is_learned_and_all_rows_are_test_rows(tmp_path):
    old = encoded(tmp_path / "old", rows=200)
    path = write(raw(60, seed=5).with_columns(pl.col("price") * 100), tmp_path / "new.parquet")
    new = encode(spec(), path, tmp_path / "new", fitted=old.fitted)
    assert new.rows == {"train": 0, "valid": 0, "test": 60, "left_out": 0}
    assert new.fitted.columns["price"].scale == old.fitted.columns["price"].scale
    assert new.fitted.columns["tags"].rows.values.equals(old.fitted.columns["tags"].rows.values)
    direct = (
        pl.read_parquet(path)
        .lazy()
        .select(e for column in old.fitted.columns.values() for e in column.polars())
        .collect()
    )
    assert new.view("test", "serving").drop("row_id").collect().equals(direct.select(*spec().serving))


def test_other_fitted_columns_make_another_encoded_log(tmp_path):
    path = write(raw(60), tmp_path / "log.parquet")
    first, second = (encoded(tmp_path / name, rows=200, seed=seed).fitted for name, seed in (("a", 1), ("b", 2)))
    one = encode(spec(), path, tmp_path / "out", fitted=first).view("test", "serving").collect()
    two = encode(spec(), path, tmp_path / "out", fitted=second).view("test", "serving").collect()
    assert one["row_id"].equals(two["row_id"])
    assert not one.equals(two)


KINDS = {
    "wider": (pl.Int32, pl.Int64, True),
    "narrower": (pl.Int64, pl.Int8, True),
    "unsigned": (pl.Int32, pl.UInt16, True),
    "as text": (pl.Int64, pl.String, False),
    "as float": (pl.Int64, pl.Float64, False),
    "as integer": (pl.Float64, pl.Int64, False),
    "as large unsigned": (pl.Int64, pl.UInt64, False),
}


@pytest.mark.parametrize(("fitted", "given", "fits"), KINDS.values(), ids=KINDS)
def test_columns_fitted_before_take_raw_columns_of_their_kind_alone(tmp_path, simple, fitted, given, fits):
    values = pl.Series([1, 2, 2, 3] * 10)
    known = simple(values.cast(fitted)).fitted
    frame = {"t": range(40), "x": values.cast(given), "y": [0, 1] * 20}
    path = write(frame, tmp_path / "new.parquet")
    if fits:
        log = encode(one_column("categorical"), path, tmp_path / "new", fitted=known)
        assert log.view("test", "serving").collect()["x"].to_list()[:4] == [3, 2, 2, 4]
    else:
        with pytest.raises(LogError, match=f"x: is {given()} here, but was {fitted()} when it was fitted"):
            encode(one_column("categorical"), path, tmp_path / "new", fitted=known)


# The same bytes, and no needless work


@pytest.mark.usefixtures("small_groups")
def test_encoding_twice_gives_the_same_bytes(tmp_path):
    path = write(raw(500), tmp_path / "log.parquet")
    folders = [encode(spec(), path, tmp_path / name).folder for name in ("a", "b", "c/d")]
    assert contents(folders[0]) == contents(folders[1]) == contents(folders[2])
    assert len(contents(folders[0])) > 20


@pytest.mark.usefixtures("small_groups")
def test_several_shards_and_row_groups_are_one_log(tmp_path):
    path = write(raw(500), tmp_path / "log.parquet")
    cut = encode(spec(), path, tmp_path / "cut")
    groups = [
        [pq.ParquetFile(file).metadata.row_group(g).num_rows for g in range(pq.ParquetFile(file).num_row_groups)]
        for file in cut.files("train", "serving")
    ]
    assert groups == [[16, 16, 16]] * 8 + [[16]]
    assert [len(cut.files("train", view)) for view in VIEWS] == [9, 9, 9]
    assert cut.row_groups("valid") == [(0, 0), (0, 1), (0, 2), (1, 0)]


def test_the_cut_into_shards_changes_no_row(tmp_path, monkeypatch):
    path = write(raw(500), tmp_path / "log.parquet")
    whole = encode(spec(), path, tmp_path / "whole")
    for size in (7, 16, 400):
        monkeypatch.setattr(module, "GROUP_ROWS", size)
        monkeypatch.setattr(module, "SHARD_ROWS", 2 * size)
        monkeypatch.setattr(module, "CHUNK_ROWS", 33)
        cut = encode(spec(), path, tmp_path / f"cut {size}")
        for split in SPLITS:
            for view in VIEWS:
                assert cut.view(split, view).collect().equals(whole.view(split, view).collect())


@pytest.fixture
def count_encodings(monkeypatch):
    calls = []
    original = module.open_log
    monkeypatch.setattr(module, "open_log", lambda *args: (calls.append(args), original(*args))[1])
    return calls


def test_an_unchanged_log_is_not_encoded_again(tmp_path, count_encodings):
    path = write(raw(100), tmp_path / "log.parquet")
    first = encode(spec(), path, tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    os.utime(path)
    second = encode(spec(), path, tmp_path / "out")
    assert len(count_encodings) == 1
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before
    assert (second.fingerprint, second.rows, second.views) == (first.fingerprint, first.rows, first.views)


CHANGES = {
    "data": lambda frame: {"frame": frame.with_columns(pl.col("price").fill_null(1.0))},
    "one value": lambda frame: {
        "frame": frame.with_columns(pl.when(pl.int_range(100) == 99).then(5).otherwise("user").alias("user"))
    },
    "order of rows": lambda frame: {"frame": frame.reverse()},
    "filter": lambda _: {"where": {"click": 1}},
    "rows to fit on": lambda _: {"fit_on": ("train", "valid")},
    "column": lambda _: {"spec": spec(serving={**COLUMNS["serving"], "user": {"type": "id", "min_count": 1}})},
    "split": lambda _: {"spec": spec(split={"time": {"valid": 0.2}})},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_changes_is_encoded_again(tmp_path, count_encodings, change):
    frame = raw(100)
    path = write(frame, tmp_path / "log.parquet")
    first = encode(spec(), path, tmp_path / "out")
    changed = change(frame)
    write(changed.pop("frame", frame), tmp_path / "log.parquet")
    second = encode(changed.pop("spec", spec()), path, tmp_path / "out", **changed)
    assert len(count_encodings) == 2
    assert second.fingerprint != first.fingerprint
    assert EncodedLog.open(tmp_path / "out").fingerprint == second.fingerprint


def test_a_changed_side_table_is_a_changed_log(tmp_path):
    side = write({"user": [1], "age": [3]}, tmp_path / "side.parquet")
    path = write(raw(50), tmp_path / "log.parquet")
    made = one_column("categorical", join={side: {"on": "user"}}, serving={"age": "categorical"})
    before = fingerprint_of(made, path, {}, ("train",))
    assert before == fingerprint_of(made, path, {}, ("train",))
    write({"user": [1], "age": [4]}, tmp_path / "side.parquet")
    assert before != fingerprint_of(made, path, {}, ("train",))


def test_a_large_file_is_told_apart_by_size_time_and_footer(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WHOLE_FILE", 2**20)
    path = tmp_path / "log.parquet"
    write({"x": np.random.default_rng(0).random(200_000)}, path)
    os.utime(path, ns=(10**18, 10**18))
    before = module.file_fingerprint(path)
    assert module.file_fingerprint(path) == before
    os.utime(path, ns=(10**18, 10**18 + 1))
    assert module.file_fingerprint(path) != before


# Refusals


@pytest.mark.parametrize("bad", [2, -1, 0.5, 1e300])
def test_a_label_other_than_0_1_and_null_is_refused(simple, bad):
    with pytest.raises(LogError, match="y: 2 rows hold something else than 0, 1 or null"):
        simple(range(40), [0.0, 1.0, None, 1.0] * 9 + [bad, bad, 0.0, 1.0])


def test_a_bad_binary_input_is_refused_by_its_name_even_if_it_is_called_like_a_role(simple):
    with pytest.raises(LogError, match="weight: 1 rows hold something else than 0, 1 or null"):
        simple(
            [3] + [0] * 39, serving={"weight": {"type": "binary", "column": "x"}}, weight="w", w=pl.Series([1.0] * 40)
        )


@pytest.mark.parametrize("bad", [-0.5, None, float("nan"), float("inf")])
def test_weights_are_finite_and_not_negative(simple, bad):
    with pytest.raises(LogError, match="weight: 1 rows hold something else than finite weights of at least 0"):
        simple(range(40), weight="w", w=pl.Series([1.0] * 20 + [bad] + [0.0] * 19, strict=False))


def test_rows_that_repeat_a_row_id_are_refused(simple):
    with pytest.raises(LogError, match=r"3 of 40 rows repeat the row id \['x'\]; add a column that tells them apart"):
        simple([*range(37), 0, 1, 0], row_id=["x"])


def test_a_log_without_rows_is_refused(simple):
    with pytest.raises(LogError, match="no row is left; check the log and the job's `where`"):
        simple([1] * 40, where={"x": 2})
    with pytest.raises(LogError, match="no row is left"):
        simple(pl.Series([], dtype=pl.Int64))


@pytest.mark.parametrize("empty", SPLITS)
def test_a_split_without_rows_is_refused(simple, empty):
    ranges = {"train": [0, 9], "valid": [10, 19], "test": [20, 39], empty: [100, 200]}
    with pytest.raises(LogError, match=f"the {empty} split has no rows; check `split` in the spec"):
        simple(range(40), split={"column": "t", **ranges})


def test_a_refused_log_leaves_nothing_behind(simple, tmp_path):
    with pytest.raises(LogError):
        simple(range(40), [7] * 40)
    assert [path.name for path in tmp_path.iterdir()] == ["log.parquet"]


FOREIGN = {
    "a file": lambda out: out.write_text("mine"),
    "a folder with a file": lambda out: (out.mkdir(), (out / "notes.txt").write_text("mine")),
    "a manifest of something else": lambda out: (out.mkdir(), (out / "manifest.json").write_text('{"seeds": [1]}')),
    "a manifest that is a list": lambda out: (out.mkdir(), (out / "manifest.json").write_text("[1]")),
    "a manifest that is no JSON": lambda out: (out.mkdir(), (out / "manifest.json").write_text("mine")),
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN)
def test_what_is_no_encoded_log_is_not_overwritten(tmp_path, make):
    out = tmp_path / "out"
    make(out)
    before = contents(tmp_path)
    with pytest.raises(LogError, match="holds no encoded log"):
        encode(spec(), write(raw(50), tmp_path / "raw" / "log.parquet"), out)
    after = {name: content for name, content in contents(tmp_path).items() if not name.startswith("raw/")}
    assert after == before


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "out").mkdir()
    assert encode(spec(), write(raw(50), tmp_path / "log.parquet"), tmp_path / "out").rows["train"] == 40


# Completion


class Interruption(BaseException):
    """Like KeyboardInterrupt, no Exception."""


def interrupt(_):
    raise Interruption


def test_an_interrupted_encoding_leaves_nothing_behind(tmp_path):
    path = write(raw(50), tmp_path / "raw" / "log.parquet")
    with pytest.raises(Interruption):
        encode(spec(), path, tmp_path / "made" / "out", progress=interrupt)
    assert list((tmp_path / "made").iterdir()) == []


def test_an_interrupted_encoding_leaves_the_older_one_whole(tmp_path):
    path = write(raw(50), tmp_path / "raw" / "log.parquet")
    encode(spec(), path, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(Interruption):
        encode(spec(), path, tmp_path / "out", where={"click": 1}, progress=interrupt)
    assert contents(tmp_path / "out") == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "raw"]


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_an_encoded_log_is_as_readable_as_any_other_folder(tmp_path, mask):
    path = write(raw(50), tmp_path / "raw" / "log.parquet")
    old = os.umask(mask)
    try:
        encode(spec(), path, tmp_path / "made" / "out")
    finally:
        os.umask(old)
    for folder in (tmp_path / "made" / "out", tmp_path / "made" / "out" / "train"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~mask
    assert stat.S_IMODE((tmp_path / "made" / "out" / "manifest.json").stat().st_mode) == 0o666 & ~mask


@pytest.mark.usefixtures("small_groups")
def test_progress_counts_every_row_once(tmp_path):
    seen = []
    encode(spec(), write(raw(333), tmp_path / "log.parquet"), tmp_path / "out", progress=seen.append)
    assert sum(seen) == 333
    assert len(seen) > 3


def test_the_manifest_says_what_was_encoded(tmp_path):
    path = write(raw(100), tmp_path / "log.parquet")
    log = encode(spec(), path, tmp_path / "out", where={"click": [0, 1]}, fit_on=("train", "valid"))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["where"] == {"click": [0, 1]}
    assert manifest["fit_on"] == ["train", "valid"]
    assert manifest["tables"] == log.fitted.tables
    assert manifest["rows"] == {"train": 80, "valid": 10, "test": 10, "left_out": 0}
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()
