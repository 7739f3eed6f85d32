"""Feature specs: defaults, short forms, and each rule between fields shown to ring."""

from datetime import date, datetime

import pytest
from pydantic import ValidationError

from recdistill.spec.columns import Bag, Binary, Id
from recdistill.spec.features import FeatureSpec, Join, SplitByColumn, SplitByHash, SplitByTime
from tests.spec.jobs import SPEC, changed, spec


def test_a_right_spec_has_no_problems():
    assert spec().problems() == []


def test_a_column_may_be_written_as_its_type_alone():
    assert (
        spec().serving["category"]
        == FeatureSpec.model_validate({"serving": {"c": {"type": "categorical"}}}).serving["c"]
    )
    assert isinstance(spec().post_event["click"], Binary)


@pytest.mark.parametrize(("type_", "least"), [("id", 2), ("categorical", 1), ("list", 1)])
def test_ids_seen_once_are_unknown_by_default_and_other_values_are_kept(type_, least):
    assert FeatureSpec.model_validate({"serving": {"c": type_}}).serving["c"].min_count == least


def test_the_type_decides_which_options_a_column_has():
    assert isinstance(spec().serving["tags"], Bag)
    assert isinstance(spec().serving["item"], Id)
    with pytest.raises(ValidationError, match="unknown key"):
        spec(serving__item={"type": "id", "separator": "|"})


def test_serving_columns_come_before_post_event_columns():
    assert list(spec().columns) == [*SPEC["serving"], *SPEC["post_event"]]


def test_a_column_reads_the_raw_column_of_its_own_name_unless_told_otherwise():
    assert spec().source("price") == "price"
    assert spec().source("price_band") == "price"


def test_a_table_belongs_to_the_owner_of_the_vocabulary():
    assert [spec().table(n) for n in ("user", "tags", "category", "price_band", "next_item")] == [
        "user",
        "category",
        "category",
        "price_band",
        "item",
    ]


def test_a_row_id_of_one_column_and_a_join_on_one_key_need_no_list():
    assert spec(row_id="user").row_id == ["user"]
    assert Join(on="a").keys == ["a"]
    assert Join(on=["a", "b"]).keys == ["a", "b"]


@pytest.mark.parametrize(
    ("split", "kind"),
    [
        ({"column": "day", "train": [0, 5], "valid": [6, 6], "test": [7, 8]}, SplitByColumn),
        ({"column": "day", "train": ["a", "b"], "valid": ["c", "c"], "test": ["d", "e"]}, SplitByColumn),
        ({"time": {"valid": 0.2}}, SplitByTime),
        ({"time": {}}, SplitByTime),
        ({"hash": {"key": "user", "test": 0.3}}, SplitByHash),
        ({"hash": {}}, SplitByHash),
    ],
)
def test_a_split_is_told_by_its_key(split, kind):
    assert isinstance(spec(split=split).split, kind)


def test_held_out_shares_are_a_tenth_each_by_default():
    assert (spec(split={"time": {}}).split.time.valid, spec(split={"time": {}}).split.time.test) == (0.1, 0.1)


def test_bounds_keep_the_type_in_which_they_are_written():
    days = [date(2022, 4, 1), date(2022, 4, 2)]
    hours = [datetime(2022, 4, 1, 5), datetime(2022, 4, 1, 6)]
    made = spec(
        split={"column": "d", "train": days[:1] * 2, "valid": days[1:] * 2, "test": [date(2023, 1, 1)] * 2}
    ).split
    assert made.train == (days[0], days[0])
    made = spec(
        split={"column": "d", "train": hours[:1] * 2, "valid": hours[1:] * 2, "test": [datetime(2023, 1, 1)] * 2}
    ).split
    assert made.train == (hours[0], hours[0])
    made = spec(split={"column": "d", "train": [0, 1.5], "valid": [2, 2], "test": [3, 4]}).split
    assert made.train == (0, 1.5)
    assert isinstance(made.train[0], int)


def ranges(train, valid, test):
    return {"split": {"column": "day", "train": train, "valid": valid, "test": test}}


INVALID = {
    "no serving column": ({"serving": {}}, "at least 1 item"),
    "clip upside down": ({"serving__price__clip": [2, 1]}, "clip needs low < high, found [2.0, 1.0]"),
    "empty clip": ({"serving__price__clip": [1, 1]}, "clip needs low < high"),
    "clip of NaN": ({"serving__price__clip": [float("nan"), 1]}, "clip needs low < high"),
    "clip and buckets": ({"serving__price_band__clip": [0, 1]}, "buckets cut the raw values"),
    "log and buckets": ({"serving__price_band__log": True}, "buckets cut the raw values"),
    "scale and buckets": ({"serving__price_band__scale": "minmax"}, "buckets cut the raw values"),
    "one bucket": ({"serving__price_band__buckets": 1}, "greater than or equal to 2"),
    "one hash bucket": ({"serving__user__hash": 1}, "greater than or equal to 2"),
    "no count": ({"serving__user__min_count": 0}, "greater than or equal to 1"),
    "empty separator": ({"serving__tags__separator": ""}, "at least 1 character"),
    "no length": ({"serving__tags__max_length": 0}, "greater than or equal to 1"),
    "train upside down": (ranges([5, 0], [6, 6], [7, 8]), "train: [5, 0] is empty"),
    "valid upside down": (ranges([0, 5], [6, 5], [7, 8]), "valid: [6, 5] is empty"),
    "test upside down": (ranges([0, 5], [6, 6], [8, 7]), "test: [8, 7] is empty"),
    "train meets valid": (ranges([0, 6], [6, 6], [7, 8]), "train and valid overlap"),
    "train meets test": (ranges([0, 6], [-1, -1], [6, 8]), "train and test overlap"),
    "valid meets test": (ranges([0, 5], [6, 9], [7, 8]), "valid and test overlap"),
    "bounds of two types": (ranges([0, "a"], [6, 6], [7, 8]), "bounds are of several types (number, str)"),
    "days and hours": (
        ranges([date(2022, 1, 1)] * 2, [datetime(2022, 1, 2)] * 2, [date(2022, 1, 3)] * 2),
        "bounds are of several types (date, datetime)",
    ),
    "nothing left to train on": ({"split": {"hash": {"valid": 0.5, "test": 0.5}}}, "leave nothing to train on"),
    "share of all rows": ({"split": {"time": {"valid": 1}}}, "less than 1"),
    "share of no rows": ({"split": {"time": {"test": 0}}}, "greater than 0"),
    "unknown split": ({"split": {"rows": 3}}, "a split names `column`, `time` or `hash`"),
    "keep rate of nothing": ({"negative_keep_rate": 0}, "greater than 0"),
    "keep rate above one": ({"negative_keep_rate": 1.5}, "less than or equal to 1"),
    "join without key": ({"join": {"side.parquet": {"drop": ["a"]}}}, "Field required"),
}


@pytest.mark.parametrize(("values", "message"), INVALID.values(), ids=INVALID)
def test_a_field_that_cannot_be_right_is_refused(values, message):
    with pytest.raises(ValidationError) as caught:
        spec(**values)
    assert message in str(caught.value)


WRONG = {
    "both roles": (
        {"post_event__user": "id"},
        ["user: declared under serving and under post_event; keep it where it belongs"],
    ),
    "serving reads a post-event raw column": (
        {"serving__peek": {"type": "numeric", "column": "dwell_ms"}},
        [
            "serving.peek: reads the raw column 'dwell_ms', which post_event.dwell_band declares to be known only "
            "after the event; remove one of the two"
        ],
    ),
    "serving is a post-event raw column": (
        {"post_event__late": {"type": "id", "column": "user"}},
        [
            "serving.user: reads the raw column 'user', which post_event.late declares to be known only after the "
            "event; remove one of the two"
        ],
    ),
    "reference is typed": (
        {"reference": ["price"]},
        ["reference: 'price' is also a typed column; a reference score is only reported"],
    ),
    "reference is read under another name": (
        {"serving__score": {"type": "numeric", "column": "production"}},
        ["reference: 'production' is also a typed column; a reference score is only reported"],
    ),
    "vocabulary of nothing": (
        {"serving__tags__vocabulary": "colour"},
        ["serving.tags.vocabulary: 'colour' is not an id, categorical or list column; name one that is"],
    ),
    "vocabulary of a number": (
        {"serving__tags__vocabulary": "price"},
        ["serving.tags.vocabulary: 'price' is not an id, categorical or list column; name one that is"],
    ),
    "borrowed from a borrower": (
        {"serving__item__vocabulary": "tags"},
        [
            "serving.item.vocabulary: 'tags' borrows its own vocabulary from 'category'; name that",
            "post_event.next_item.vocabulary: 'item' borrows its own vocabulary from 'tags'; name that",
        ],
    ),
    "serving borrows from post-event": (
        {"post_event__late": "id", "serving__tags__vocabulary": "late"},
        ["serving.tags.vocabulary: 'late' is post-event; a serving column cannot read its vocabulary"],
    ),
    "hash of a borrower": (
        {"serving__tags__hash": 9},
        ["serving.tags.vocabulary: hash is decided by the owner of the vocabulary, 'category'; remove it here"],
    ),
    "time split without time": (
        {"time": None, "split": {"time": {}}},
        ["split.time: needs a time column; add `time: <column>` or split by column or hash"],
    ),
    "named like the row id": (
        {"serving__row_id": {"type": "id", "column": "user"}},
        ["row_id: encoding adds a column of this name; call yours something else and add `column: user`"],
    ),
    "cross named like the row id": (
        {"serving__row_id": {"type": "cross", "of": ["user", "item"], "hash": 9}},
        ["row_id: encoding adds a column of this name; call yours something else"],
    ),
    "named like a role": (
        {"post_event__group": "binary"},
        ["group: encoding adds a column of this name; call yours something else and add `column: group`"],
    ),
}


@pytest.mark.parametrize(("values", "problems"), WRONG.values(), ids=WRONG)
def test_each_rule_between_fields_rings(values, problems):
    assert spec(**values).problems() == problems


@pytest.mark.parametrize(
    "values",
    [
        {"serving__tags__vocabulary": "item"},
        {"serving__item__hash": 100},
        {"post_event__weight": "binary"},
        {"serving__time": {"type": "numeric", "column": "time_ms"}},
        {"split": {"time": {}}},
        {"time": None, "split": {"hash": {}}},
    ],
)
def test_what_only_resembles_a_problem_is_allowed(values):
    assert spec(**values).problems() == []


def test_all_problems_of_a_spec_are_found_together():
    broken = changed(SPEC, reference=["price"], serving__tags__vocabulary="x", time=None, split={"time": {}})
    assert len(FeatureSpec.model_validate(broken).problems()) == 3


def test_a_spec_cannot_be_changed_after_it_was_checked():
    with pytest.raises(ValidationError, match="frozen"):
        spec().time = "other"
