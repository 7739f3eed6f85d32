"""A log for any spec: right types, all roles, a split that encodes, labels that can be learned."""

from datetime import date, datetime

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import OneHotEncoder

from recdistill.data.encode import encode
from recdistill.data.simulate_spec import flat_spec, simulate_spec
from recdistill.errors import LogError
from recdistill.evaluation import auc
from recdistill.spec.features import FeatureSpec

EVERYTHING = {
    "row_id": ["user", "at"],
    "time": "at",
    "group": "session",
    "weight": "w",
    "scenario": "scene",
    "reference": ["production"],
    "join": {"items.parquet": {"on": "item"}},
    "serving": {
        "user": {"type": "id"},
        "item": {"type": "id", "hash": 50},
        "city": "categorical",
        "tags": {"type": "list", "max_length": 3},
        "words": {"type": "list", "separator": ", ", "vocabulary": "title"},
        "title": {"type": "list", "separator": " "},
        "price": {"type": "numeric", "log": True},
        "price_band": {"type": "numeric", "column": "price", "buckets": 5},
        "member": "binary",
    },
    "post_event": {
        "buy": "binary",
        "click": "binary",
        "dwell_ms": {"type": "numeric", "log": True},
        "dwell_band": {"type": "numeric", "column": "dwell_ms", "buckets": 4},
        "mood": "categorical",
        "seen": "list",
        "typed": {"type": "list", "separator": "|"},
    },
}


def spec(**values):
    made = FeatureSpec.model_validate({**EVERYTHING, **values})
    assert made.problems() == []
    return made


def simulated(folder, made=None, name="log", **options):
    path = folder / f"{name}.parquet"
    simulate_spec(made or spec(), path, **{"rows": 500, **options})
    return pl.read_parquet(path)


def encoded(folder, made=None, **options):
    made = made or spec()
    simulated(folder, made, **options)
    return encode(flat_spec(made), str(folder / "log.parquet"), folder / "encoded")


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        simulated(tmp_path, name=name, seed=seed)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert not pl.read_parquet(tmp_path / "a.parquet")["city"].equals(pl.read_parquet(tmp_path / "c.parquet")["city"])


def test_a_log_of_every_column_type_and_role_encodes(tmp_path):
    log = encoded(tmp_path)
    assert log.rows == {"train": 400, "valid": 50, "test": 50, "left_out": 0}
    assert log.views["serving"] == list(EVERYTHING["serving"])
    assert log.views["labels"] == ["buy", "click", "reference:production", "weight", "group", "time", "scenario"]
    for name, column in log.fitted.columns.items():
        view = log.view("train", "serving" if name in EVERYTHING["serving"] else "post_event").collect()[name]
        assert view.n_unique() > (1 if name in ("member", "buy", "click") else 2), name
        assert column.kind in ("id", "bag", "float")


def test_a_log_comes_whole_with_one_report_of_progress(tmp_path):
    counts = []
    simulated(tmp_path / "new" / "folder", rows=120, progress=counts.append)
    assert counts == [120]
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["log.parquet"]


def test_some_serving_values_are_missing_and_lists_may_be_empty(tmp_path):
    log = simulated(tmp_path, rows=3000)
    for name in ("user", "city", "price"):
        assert 0.01 < log[name].null_count() / 3000 < 0.06
    assert log["tags"].list.len().min() == 0
    assert (log["title"] == "").any()


@pytest.mark.parametrize(
    ("split", "shares"),
    [
        ({"column": "day", "train": [0, 7], "valid": [8, 8], "test": [9, 9]}, (400, 50, 50)),
        ({"column": "day", "train": [0.5, 1.5], "valid": [2, 2], "test": [3, 4]}, (400, 50, 50)),
        ({"column": "day", "train": ["a", "b"], "valid": ["c", "c"], "test": ["d", "e"]}, (400, 50, 50)),
        (
            {
                "column": "day",
                "train": [date(2022, 4, 25), date(2022, 4, 30)],
                "valid": [date(2022, 5, 1)] * 2,
                "test": [date(2022, 5, 2), date(2022, 5, 3)],
            },
            (400, 50, 50),
        ),
        (
            {
                "column": "day",
                "train": [datetime(2022, 4, 25, 1), datetime(2022, 4, 30, 2)],
                "valid": [datetime(2022, 5, 1)] * 2,
                "test": [datetime(2022, 5, 2), datetime(2022, 5, 3)],
            },
            (400, 50, 50),
        ),
        ({"time": {"valid": 0.2, "test": 0.2}}, (300, 100, 100)),
        ({"hash": {"key": "request"}}, None),
        ({"hash": {"key": "user"}}, None),
        (None, (400, 50, 50)),
    ],
    ids=[
        "numbers",
        "floats",
        "texts",
        "dates",
        "hours",
        "time",
        "hash of a new column",
        "hash of a typed column",
        "default",
    ],
)
def test_every_kind_of_split_has_rows_in_all_parts(tmp_path, split, shares):
    rows = encoded(tmp_path, spec(split=split)).rows
    assert rows["left_out"] == 0
    assert tuple(rows[name] for name in ("train", "valid", "test")) == shares or shares is None


def test_labels_are_withheld_from_early_rows_of_the_named_columns_alone(tmp_path):
    log = simulated(tmp_path, rows=2000, labelled=0.25, label=["buy"])
    known = log["buy"].is_not_null()
    assert known[:1600].mean() == pytest.approx(0.25, abs=0.05)
    assert known[1600:].all()
    assert log["click"].null_count() == 0


def test_filtered_columns_hold_the_value_that_rows_must_have(tmp_path):
    log = simulated(tmp_path, where={"click": 1, "scene": ["a", "b"], "extra": "x"})
    assert {name: log[name].unique().to_list() for name in ("click", "scene", "extra")} == {
        "click": [1],
        "scene": ["a"],
        "extra": ["x"],
    }


def test_a_row_id_that_cannot_tell_rows_apart_is_refused(tmp_path):
    for values in (
        {"row_id": ["user", "member"]},
        {"row_id": ["at"], "split": {"column": "at", "train": [0, 7], "valid": [8, 8], "test": [9, 9]}},
        {"row_id": ["member"], "time": None},
    ):
        with pytest.raises(LogError, match="simulation: several rows share a row id"):
            simulated(tmp_path, spec(**values))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("row_id", [[], ["impression"], ["user", "impression"], ["at"], ["user", "city"]])
def test_a_row_id_that_can_is_simulated(tmp_path, row_id):
    assert sum(encoded(tmp_path, spec(row_id=row_id)).rows.values()) == 500


def test_a_role_column_keeps_its_first_meaning(tmp_path):
    made = spec(row_id=["request", "at"], group="request", split={"hash": {"key": "at"}})
    log = simulated(tmp_path, made)
    assert log["at"].is_sorted()
    assert log["request"].n_unique() < 100
    assert (
        sum(encoded(tmp_path / "more", spec(row_id=["request"], split={"hash": {"key": "request"}})).rows.values())
        == 500
    )


def test_labels_can_be_learned_and_traces_tell_more(tmp_path):
    log = simulated(tmp_path, rows=8000, seed=1)
    categories = OneHotEncoder(handle_unknown="ignore").fit_transform(log.select("city", "member").to_numpy()).toarray()
    price = np.log(log["price"].fill_null(20).to_numpy())[:, None]
    serving = np.hstack([categories, price])
    traces = np.hstack([serving, np.log(log["dwell_ms"].to_numpy())[:, None], log["mood"].to_numpy()[:, None]])
    scores = {}
    for name, columns in (("serving", serving), ("full", traces)):
        model = LogisticRegression(max_iter=500).fit(columns[:6000], log["buy"][:6000])
        scores[name] = auc(log["buy"][6000:], model.decision_function(columns[6000:]))
    assert scores["serving"] > 0.58
    assert scores["full"] > scores["serving"] + 0.05


def test_a_value_has_the_same_effect_in_every_log(tmp_path):
    rates = []
    for seed in (1, 2):
        log = simulated(tmp_path, rows=8000, seed=seed)
        rates.append(log.drop_nulls("city").group_by("city").agg(pl.col("buy").mean(), pl.len()).sort("city"))
    both = rates[0].join(rates[1], on="city").filter((pl.col("len") > 200) & (pl.col("len_right") > 200))
    assert np.corrcoef(both["buy"], both["buy_right"])[0, 1] > 0.6


def test_a_flat_spec_needs_no_side_tables():
    assert flat_spec(spec()).join == {}
    assert flat_spec(spec()).serving == spec().serving


def test_histories_have_something_to_be_made_from(tmp_path):
    past = {"type": "history", "keys": ["city", "shop"], "of": "shared", "session": "visit"}
    made = spec(serving={**EVERYTHING["serving"], "rate": past})
    log = simulated(tmp_path, made)
    assert "rate" not in log.columns
    assert log["shared"].unique().sort().to_list() == [0, 1]
    assert log["shop"].n_unique() > 10
    rate = encoded(tmp_path, made).view("train", "serving").select("rate").collect()["rate"]
    assert rate.n_unique() > 10


FURTHER = {
    "time": "at",
    "serving": {
        "absent": {"type": "missing", "column": "price"},
        "no_tags": {"type": "missing", "column": "tags"},
        "tags": {"type": "list", "weights": "how_much"},
        "user_city": {"type": "cross", "of": ["user", "city"], "hash": 300},
        "hour": {"type": "date_part", "part": "hour", "column": "at", "zone": "Asia/Shanghai"},
        "price": "numeric",
        "price_band": {"type": "numeric", "column": "price", "edges": [10, 20, 40]},
        "title": {"type": "text", "hash": 500, "ngrams": 2, "idf": True},
        "user": {"type": "id", "min_count": 1},
        "seen": {"type": "sequence", "times": "seen_at"},
        "born": {"type": "date_part", "part": "month", "unit": "s"},
    },
    "post_event": {
        "buy": "binary",
        "review": {"type": "text", "hash": 50},
        "returned": {"type": "date_part", "part": "weekday"},
        "reply": {"type": "missing", "column": "reply_ms"},
        "mood_band": {"type": "cross", "of": ["mood", "reply_ms"], "hash": 50},
        "basket": {"type": "list", "weights": "amounts"},
    },
}


def test_columns_of_several_raw_columns_times_and_texts_are_simulated(tmp_path):
    made = FeatureSpec.model_validate(FURTHER)
    assert made.problems() == []
    raw = simulated(tmp_path, made, rows=2000)
    assert raw["at"].is_sorted() and raw["at"].n_unique() == 2000
    assert raw["price"].dtype == pl.Float64 and raw["price"].null_count() > 20
    assert raw["user"].n_unique() > 12  # made for the id, which needs more values than the cross
    log = encode(made, str(tmp_path / "log.parquet"), tmp_path / "encoded")
    for name, column in log.fitted.columns.items():
        view = log.view("train", "serving" if name in made.serving else "post_event").collect()[name]
        assert view.n_unique() >= (2 if column.kind == "float" else 3), name
    assert log.view("train", "serving").select("hour").unique().collect().height == 24


def test_what_times_tell_can_be_learned(tmp_path):
    made = FeatureSpec.model_validate({**FURTHER, "post_event": {"buy": "binary"}})
    log = simulated(tmp_path, made, rows=20_000, seed=1)
    later = pl.from_epoch("at", "ms").dt.convert_time_zone("Asia/Shanghai").dt.hour().alias("hour")
    rates = log.with_columns(later).group_by("hour").agg(pl.col("buy").mean(), n=pl.len())
    assert rates["buy"].std() > 3 * np.sqrt(0.25 / rates["n"].mean())
