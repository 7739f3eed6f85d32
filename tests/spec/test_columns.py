"""Column types: what each declaration takes, reads and becomes, and what is refused in words."""

import pytest

from recdistill.errors import SpecError
from recdistill.spec.features import FeatureSpec
from recdistill.spec.load import parse_feature_spec


def column(**declared):
    return FeatureSpec.model_validate({"serving": {"x": declared}}).serving["x"]


@pytest.mark.parametrize(
    ("declared", "embedded"),
    [
        ({"type": "id"}, True),
        ({"type": "list"}, True),
        ({"type": "text"}, True),
        ({"type": "cross", "of": ["a", "b"], "hash": 9}, True),
        ({"type": "date_part", "part": "hour"}, True),
        ({"type": "numeric", "buckets": 3}, True),
        ({"type": "numeric", "edges": [0]}, True),
        ({"type": "numeric"}, False),
        ({"type": "missing"}, False),
        ({"type": "binary"}, False),
    ],
)
def test_a_declaration_says_whether_it_is_looked_up_in_a_table(declared, embedded):
    assert column(**declared).embedded is embedded


def test_a_cross_reads_what_it_crosses_and_not_the_column_of_its_name():
    spec = FeatureSpec.model_validate(
        {"serving": {"x": {"type": "cross", "of": ["a", "b"], "hash": 9}}, "post_event": {"b": "binary"}}
    )
    assert spec.sources("x") == ["a", "b"]
    assert "serving.x: reads the raw column 'b', which post_event.b declares" in spec.problems()[0]


def test_weights_are_read_besides_the_list():
    assert column(type="list", weights="w").sources("x") == ["x", "w"]
    assert column(type="list", weights="w").weighted and not column(type="list").weighted
    assert column(type="text", idf=True).weighted and not column(type="text").weighted


WRONG = {
    "cross of one": ({"type": "cross", "of": ["a"], "hash": 9}, "serving.x.of: expected at least 2 of them, found 1"),
    "cross without hash": ({"type": "cross", "of": ["a", "b"]}, "serving.x.hash: is required"),
    "cross of the same": (
        {"type": "cross", "of": ["a", "b", "a"], "hash": 9},
        "serving.x: `of` names 'a' twice; once tells all that it knows",
    ),
    "cross with a column": (
        {"type": "cross", "of": ["a", "b"], "hash": 9, "column": "c"},
        "serving.x: a cross reads the raw columns in `of`, but `column` names 'c'; remove it",
    ),
    "unknown part": ({"type": "date_part", "part": "minute"}, "serving.x.part: input should be 'hour', 'weekday'"),
    "unknown zone": (
        {"type": "date_part", "part": "hour", "zone": "Asia/Shangai"},
        "serving.x.zone: 'Asia/Shangai' is no time zone; did you mean 'Asia/Shanghai'?",
    ),
    "path as zone": (
        {"type": "date_part", "part": "hour", "zone": "../../secret"},
        "serving.x.zone: '../../secret' is no time zone; give a name such as Asia/Shanghai",
    ),
    "edges and buckets": (
        {"type": "numeric", "edges": [0], "buckets": 3},
        "serving.x: buckets are cut at quantiles, edges where you say; keep one of the two",
    ),
    "edges and log": (
        {"type": "numeric", "edges": [0], "log": True},
        "serving.x: edges cut the raw values, so clip, log and scale have no effect; remove them",
    ),
    "no edges": ({"type": "numeric", "edges": []}, "serving.x.edges: expected at least 1 of them, found 0"),
    "falling edges": (
        {"type": "numeric", "edges": [0, 2, 1]},
        "serving.x: edges must be finite and rise strictly, found [0.0, 2.0, 1.0]; sort them, each one once",
    ),
    "equal edges": ({"type": "numeric", "edges": [1, 1]}, "rise strictly"),
    "infinite edge": ({"type": "numeric", "edges": [0, float("inf")]}, "must be finite"),
    "least infinite edge": ({"type": "numeric", "edges": [-float("inf"), 0]}, "must be finite"),
    "no number as edge": ({"type": "numeric", "edges": [float("nan")]}, "must be finite"),
    "text with a separator": ({"type": "text", "separator": ","}, "serving.x.separator: unknown key"),
    "no runs of words": ({"type": "text", "ngrams": 0}, "serving.x.ngrams: input should be greater than or equal to 1"),
    "missing with options": ({"type": "missing", "log": True}, "serving.x.log: unknown key"),
}


@pytest.mark.parametrize(("declared", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_declaration_is_refused_in_words(declared, message):
    with pytest.raises(SpecError) as caught:
        parse_feature_spec({"serving": {"x": declared}}, "spec")
    assert message in str(caught.value)
