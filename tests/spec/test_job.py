"""Jobs: short forms, and each rule inside a job, and between a job and its spec, shown to ring."""

import pytest
from pydantic import ValidationError

from recdistill.spec.job import Job, NoControls, Simulation, columns_of, member_names
from recdistill.spec.terms import names_in, parse_term
from tests.spec.jobs import JOB, changed, job, spec, without


def test_a_right_job_has_no_problems():
    assert job().problems() == []
    assert job().problems_with(spec()) == []


def test_short_forms_mean_their_long_ones():
    short = job(members__student__net="lr", members__teacher__view="privileged", label="buy")
    assert short.members["student"].net == {"lr": {}}
    assert short.members["teacher"].view == ["privileged"]
    assert short.label == ["buy"]


def test_a_member_sees_the_serving_view_and_a_job_trains_both_controls_by_default():
    assert job().members["student"].view == ["serving"]
    assert job().controls == ["plain", "shuffled"]
    assert job().train.dense.adam.lr == 1e-3
    assert job().train.tables.step.lr == 0.02


def test_the_student_is_the_member_that_serves():
    assert job().student == "student"
    assert job(members__student__serve=False, members__teacher__serve=True).student == "teacher"


def test_a_log_is_a_path_or_a_simulation():
    assert job(log="a/*.parquet").log == "a/*.parquet"
    assert job(log={"simulate": "marketplace", "rows": 100}).log == Simulation(simulate="marketplace", rows=100)


def test_controls_are_a_list_or_none_with_a_reason():
    assert job(controls=[]).controls == []
    assert job(controls={"none": "nothing to compare with"}).controls == NoControls(none="nothing to compare with")


INVALID = {
    "no member": ({"members": {}}, "at least 1 item"),
    "no phase": ({"phases": []}, "at least 1 item"),
    "no term": ({"phases__0__terms": []}, "give either terms or updates"),
    "no label": ({"label": []}, "at least 1 item"),
    "two nets": ({"members__student__net": {"mlp": [1], "lr": {}}}, "at most 1 item"),
    "no net": ({"members__student__net": {}}, "at least 1 item"),
    "narrow embeddings": ({"members__student__dim": 0}, "greater than or equal to 4"),
    "uneven embeddings": ({"members__student__dim": 6}, "multiple of 4"),
    "drops everything": ({"members__student__dropout": 1}, "less than 1"),
    "epochs and steps": ({"phases__0__steps": 3}, "give either epochs or steps"),
    "neither epochs nor steps": ({"phases__0__epochs": None}, "give either epochs or steps"),
    "no epoch": ({"phases__0__epochs": 0}, "greater than or equal to 1"),
    "unknown monitor": ({"train__stop": {"monitor": "loss"}}, "expected logloss, auc, or a metric of lists"),
    "two optimizers": ({"train__dense": {"adam": {}, "sgd": {}}}, "name exactly one of adam, adamw, sgd"),
    "no optimizer": ({"train__dense": {}}, "name exactly one of adam, adamw, sgd"),
    "two table optimizers": (
        {"train__tables": {"adagrad": {}, "sgd": {}}},
        "name exactly one of rowwise_adagrad, adagrad, sgd",
    ),
    "no learning rate": ({"train__dense": {"adam": {"lr": 0}}}, "greater than 0"),
    "empty batch": ({"train__batch": 0}, "greater than or equal to 1"),
    "keeps no negatives": ({"train__negative_keep_rate": 0}, "greater than 0"),
    "keeps no labels": ({"train__keep_labels": 0}, "greater than 0"),
    "unknown precision": ({"train__precision": "float16"}, "'float32' or 'bfloat16'"),
    "no seed": ({"seeds": 0}, "greater than or equal to 1"),
    "unknown control": ({"controls": ["noise"]}, "'plain' or 'shuffled'"),
    "no controls without a reason": ({"controls": {"none": "because"}}, "at least 10 characters"),
    "tiny simulation": ({"log": {"simulate": "marketplace", "rows": 10}}, "greater than or equal to 100"),
    "unknown simulation": ({"log": {"simulate": "market"}}, "'marketplace', 'preferences' or 'spec'"),
    "unknown twin": (
        {"log": {"simulate": "marketplace", "privileged": "fake"}},
        "'real', 'noise', 'serving' or 'label'",
    ),
    "nothing labelled": ({"log": {"simulate": "marketplace", "labelled": 0}}, "greater than 0"),
}


@pytest.mark.parametrize(("values", "message"), INVALID.values(), ids=INVALID)
def test_a_field_that_cannot_be_right_is_refused(values, message):
    with pytest.raises(ValidationError) as caught:
        job(**values)
    assert message in str(caught.value)


WRONG = {
    "nobody serves": (
        {"members__student__serve": False},
        ["members: exactly one member serves, found none; set `serve: true` on the student"],
    ),
    "two serve": (
        {"members__teacher__serve": True},
        ["members: exactly one member serves, found ['student', 'teacher']; set `serve: true` on the student"],
    ),
    "name with a dash": (
        {"members": {"stu-dent": JOB["members"]["student"]}},
        ["members.stu-dent: a member's name is a word of letters, digits and _"],
    ),
    "name that starts with a digit": (
        {"members": {"2nd": JOB["members"]["student"]}},
        ["members.2nd: a member's name is a word of letters, digits and _"],
    ),
    "shares with nobody": (
        {"members__teacher__share__tables": "studnet"},
        ["members.teacher.share.tables: no member 'studnet'; did you mean 'student'?"],
    ),
    "shares with itself": (
        {"members__teacher__share__tables": "teacher"},
        ["members.teacher.share.tables: a member cannot share with itself; remove it"],
    ),
    "shares with a sharer": (
        {"members__third": {"net": "lr", "share": {"tables": "teacher"}}},
        ["members.third.share.tables: 'teacher' takes its tables from another member; name that one"],
    ),
    "shares tables of another width": (
        {"members__teacher__dim": 32},
        ["members.teacher.share.tables: 'student' has dim 16, 'teacher' has 32; make them equal"],
    ),
    "shares a trunk that is none": (
        {"members__teacher__share__trunk": "student"},
        ["members.teacher.share.trunk: 'student' has no trunk; give it `trunk: [width, ...]`"],
    ),
    "serves another label first": (
        {"label": ["buy", "click"], "members__student__labels": ["click", "buy"]},
        ["members.student.labels: a serving member predicts 'buy', the main label, first"],
    ),
    "member like a control": (
        {"members__shuffled": {"net": "lr"}, "members__plain": {"net": "lr"}},
        [
            "members.shuffled: is the name of a control in reports; choose another one",
            "members.plain: is the name of a control in reports; choose another one",
        ],
    ),
    "member like the control of another": (
        {"members__plain_teacher": {"net": "lr"}, "members__teacher__compare": True},
        ["members.plain_teacher: is the name of a control in reports; choose another one"],
    ),
    "label twice": ({"label": ["buy", "buy"]}, ["label: ['buy', 'buy'] names something twice"]),
    "privileged twice": ({"privileged": ["click", "click"]}, ["privileged: ['click', 'click'] names something twice"]),
    "control twice": ({"controls": ["plain", "plain"]}, ["controls: ['plain', 'plain'] names something twice"]),
}


@pytest.mark.parametrize(("values", "problems"), WRONG.values(), ids=WRONG)
def test_each_rule_inside_a_job_rings(values, problems):
    assert job(**values).problems() == problems


def test_a_term_outside_the_grammar_is_named_by_its_place():
    broken = job(phases__1__terms=["bce(student.logit, label)", "soft(student.logit) + 1"]).problems()
    assert len(broken) == 1
    assert broken[0].startswith("phases.1.terms.1: 'soft(student.logit) + 1': ")


WRONG_WITH_SPEC = {
    "label of no column": (
        {"label": "bye"},
        ["label: 'bye' is not a post-event column of the spec; did you mean 'buy'?"],
    ),
    "label that serves": (
        {"label": "price"},
        ["label: 'price' is not a post-event column of the spec; known: click, buy, dwell_ms, dwell_band, next_item"],
    ),
    "label that is no binary column": (
        {"label": "next_item"},
        ["label: 'next_item' is of type id; a label is binary"],
    ),
    "privileged label": (
        {"privileged": ["buy", "dwell_ms"]},
        ["privileged: 'buy' is the label; a teacher must not read it"],
    ),
    "privileged second label": (
        {"label": ["buy", "click"]},
        ["privileged: 'click' is the label; a teacher must not read it"],
    ),
    "privileged serving column": (
        {"privileged": ["price"]},
        ["privileged: 'price' is a serving column already; known: click, buy, dwell_ms, dwell_band, next_item"],
    ),
    "privileged nothing": (
        {"privileged": ["dwel_ms"]},
        ["privileged: 'dwel_ms' is not a post-event column of the spec; did you mean 'dwell_ms'?"],
    ),
    "student with the privileged view": (
        {"members__student__view": ["serving", "privileged"]},
        [
            "members.student.view: a serving member may read serving columns only, but 'privileged' is known after the "
            "event; remove it, or let another member serve"
        ],
    ),
    "student with a post-event column": (
        {"members__student__view": ["price", "dwell_ms"]},
        [
            "members.student.view: a serving member may read serving columns only, but 'dwell_ms' is known after the "
            "event; remove it, or let another member serve"
        ],
    ),
    "teacher with an undeclared column": (
        {"members__teacher__view": ["serving", "dwell_band"]},
        ["members.teacher.view: 'dwell_band' is not among the job's privileged columns; add it there"],
    ),
    "teacher with the label": (
        {"members__teacher__view": ["serving", "buy"]},
        ["members.teacher.view: 'buy' is the label, so no member reads it; take it out"],
    ),
    "view of nothing": (
        {"members__teacher__view": ["serving", "prize"]},
        ["members.teacher.view: no column 'prize'; did you mean 'price'?"],
    ),
    "view named twice": (
        {"members__teacher__view": ["serving", "privileged", "serving"]},
        ["members.teacher.view: ['serving', 'privileged', 'serving'] names something twice"],
    ),
    "privileged view of nothing": (
        {"privileged": []},
        ["members.teacher.view: 'privileged' is empty; name privileged columns in the job"],
    ),
    "own table of nothing": (
        {"members__teacher__share__own": ["itme"]},
        ["members.teacher.share.own: no column 'itme'; did you mean 'item'?"],
    ),
}


@pytest.mark.parametrize(("values", "problems"), WRONG_WITH_SPEC.values(), ids=WRONG_WITH_SPEC)
def test_each_rule_between_job_and_spec_rings(values, problems):
    assert job(**values).problems_with(spec()) == problems


def test_a_privileged_column_that_reads_the_labels_raw_column_is_refused():
    twin = spec(post_event__bought={"type": "categorical", "column": "buy"})
    assert job(privileged=["bought", "dwell_ms"]).problems_with(twin) == [
        "privileged: 'bought' reads the raw column of the label 'buy'; a teacher must not read it"
    ]


GRAPH = {"user": "user", "item": "item"}


def test_a_binary_column_that_terms_could_not_name_is_refused():
    marked = spec(post_event__taken="binary", post_event__popularity={"type": "numeric"})
    assert job().problems_with(marked) == []
    assert job(graph=GRAPH).problems_with(marked) == [
        "post_event.taken: in terms this word is what is known of candidates, so that they could not name the column; "
        "call yours something else and add `column: taken`"
    ]
    labelled = spec(post_event__label={"type": "binary", "column": "seen"})
    assert job(label="label").problems_with(labelled) == []
    assert job().problems_with(labelled) == [
        "post_event.label: in terms this word is the main label, here 'buy', so that they could not name the column; "
        "call yours something else and add `column: seen`"
    ]


@pytest.mark.parametrize(
    ("view", "serving", "privileged"),
    [
        (["serving"], ["user", "item", "tags", "category", "price", "price_band"], []),
        (["privileged", "price", "user"], ["user", "price"], ["click", "dwell_ms"]),
        (["dwell_ms"], [], ["dwell_ms"]),
    ],
)
def test_a_view_stands_for_columns_in_the_order_of_the_spec(view, serving, privileged):
    assert columns_of(view, spec(), ["click", "dwell_ms"]) == (serving, privileged)


def test_names_are_found_wherever_a_term_mentions_them():
    term = parse_term("smallest(soft(student.logit, teacher[:].logit, k=critic.x), 2) * g(x).rows(present(gate.y))")
    assert [str(name) for name in names_in(term)] == ["student.logit", "teacher[:].logit", "critic.x", "x", "gate.y"]


def test_members_of_a_term_are_those_of_the_job():
    assert member_names(job(), parse_term("soft(student.logit, teacher[:].logit, other.logit) * f(label)")) == [
        "student",
        "teacher",
    ]


def test_a_member_without_a_net_is_no_member():
    with pytest.raises(ValidationError, match="net"):
        Job.model_validate(without(JOB, "members", "teacher", "net"))


def test_an_unknown_key_deep_in_a_job_is_named_with_its_neighbour():
    with pytest.raises(ValidationError, match="did you mean 'patience'"):
        Job.model_validate(changed(JOB, train__stop={"patence": 2}))
