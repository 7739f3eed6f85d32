"""What a history column may read: anything of past rows, of its own row only what is known when it is served."""

import pytest
from pydantic import ValidationError

from recdistill.runs.export import withheld
from recdistill.spec.columns import History
from tests.spec.jobs import job, spec

RATE = {"type": "history", "keys": ["user", "category"], "of": "buy"}


def column(**options):
    return History.model_validate({"type": "history", "keys": ["user"], **options})


def test_a_rate_if_there_is_an_outcome_otherwise_a_count():
    assert not column().rate
    assert column(of="buy").rate
    assert not column(of="buy", value="count").rate


@pytest.mark.parametrize(
    ("options", "log"),
    [({}, True), ({"of": "buy"}, False), ({"of": "buy", "value": "count"}, True), ({"of": "buy", "log": True}, True)],
)
def test_counts_are_compressed_and_rates_are_not_unless_told_otherwise(options, log):
    assert column(**options).numeric.log == log
    assert column(**options, scale="minmax").numeric.scale == "minmax"


def test_one_key_needs_no_list():
    assert column(keys="user").keys == ["user"]


def test_it_reads_keys_outcome_and_session_and_a_row_must_hold_the_keys_alone():
    made = spec(serving__rate={**RATE, "session": "visit"})
    assert made.sources("rate") == ["user", "category", "buy", "visit"]
    assert made.given("rate") == ["user", "category"]
    assert made.problems() == []


INVALID = {
    "no key": ({"keys": []}, "at least 1 item"),
    "a key twice": ({"keys": ["user", "user"]}, "`keys` names 'user' twice"),
    "a column": ({"column": "user"}, "a history reads `keys` and `of`, but `column` names 'user'"),
    "a rate of nothing": ({"value": "rate"}, "a rate needs `of`, the raw column whose mean it is"),
    "a smoothed count": ({"prior": 3}, "prior smooths a rate and has no effect on a count"),
    "a smoothed sum": ({"of": "buy", "value": "count", "prior": 3}, "prior smooths a rate"),
    "no prior": ({"of": "buy", "prior": 0}, "greater than 0"),
    "no half-life": ({"half_life": 0}, "greater than 0"),
    "an endless half-life": ({"half_life": float("inf")}, "finite"),
    "its own outcome as a key": ({"keys": ["user", "buy"], "of": "buy"}, "a row would tell its own outcome"),
    "its own outcome as a session": ({"of": "buy", "session": "buy"}, "a row would tell its own outcome"),
    "a key as a session": ({"session": "user"}, "session 'user' is a key too, so that no row would count"),
}


@pytest.mark.parametrize(("options", "message"), INVALID.values(), ids=INVALID)
def test_what_cannot_be_right_is_refused(options, message):
    with pytest.raises(ValidationError) as caught:
        column(**options)
    assert message in str(caught.value)


FRESHER = (
    "is a raw column that the spec reads, but under this name a caller may pass a fresher value; call the history "
    "something else"
)
WRONG = {
    "no time": (
        {"time": None, "serving__rate": RATE},
        ["serving.rate: a history needs to know which rows are past; add `time: <column>`"],
    ),
    "called like a raw column": (
        {"serving__cart": {"type": "history", "keys": "cart"}},
        [f"serving.cart: 'cart' {FRESHER}"],
    ),
    "called like a role": (
        {"post_event__time_ms": {"type": "history", "keys": "user"}},
        [f"post_event.time_ms: 'time_ms' {FRESHER}"],
    ),
    "a key known only afterwards": (
        {"serving__rate": {"type": "history", "keys": ["user", "click"], "of": "buy"}},
        [
            "serving.rate: reads the raw column 'click', which post_event.click declares to be known only after the "
            "event; remove one of the two"
        ],
    ),
    "a session known only afterwards": (
        {"post_event__rate": {**RATE, "session": "click"}},
        [
            "post_event.rate.session: 'click' is known only after the event (post_event.click), so that a row would "
            "tell its own outcome; name another column"
        ],
    ),
}


@pytest.mark.parametrize(("values", "problems"), WRONG.values(), ids=WRONG)
def test_each_rule_between_fields_rings(values, problems):
    assert spec(**values).problems() == problems


@pytest.mark.parametrize(
    "values",
    [
        {"serving__rate": {"type": "history", "keys": "user", "of": "dwell_ms"}},
        {"serving__rate": RATE, "post_event__dear": {"type": "history", "keys": ["user", "item"], "of": "buy"}},
        {"post_event__dear": {"type": "history", "keys": ["user", "click"]}},
        {"serving__rate": {**RATE, "session": "visit"}},
    ],
)
def test_outcomes_of_past_rows_may_be_read_and_post_event_histories_may_have_any_keys(values):
    assert spec(**values).problems() == []


def test_a_teacher_may_read_how_past_rows_turned_out_but_not_by_the_label_as_a_key():
    made = spec(post_event__dear=RATE, post_event__leak={"type": "history", "keys": ["user", "buy"]})
    assert job(privileged=["dear"]).problems_with(made) == []
    (problem,) = job(privileged=["leak"]).problems_with(made)
    assert problem.startswith("privileged: 'leak' reads the raw column of the label 'buy'")


def test_keys_of_a_post_event_history_may_be_in_the_artefact_and_outcomes_of_a_serving_one_may_not():
    made = spec(serving__rate=RATE, post_event__dear={"type": "history", "keys": ["user", "page"], "of": "buy"})
    names = withheld(job(), made)
    assert {"dear", "page", "buy", "click", "dwell_ms"} <= set(names)
    assert not {"user", "category", "rate"} & set(names)
