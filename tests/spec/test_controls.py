"""Controls: `plain` loses exactly what the other members gave, `shuffled` keeps everything but the knowledge."""

import pytest

from recdistill.errors import SpecError
from recdistill.spec.controls import arms
from recdistill.spec.job import NoControls
from recdistill.spec.members import Sharing
from tests.spec.jobs import job, spec


def arm(name, **values):
    return next(a for a in arms(job(controls=[name], **values)) if a.name != "main")


def plain(**values):
    return arm("plain", **values).job


def test_the_arms_are_the_job_itself_and_its_controls_in_order():
    assert [a.name for a in arms(job())] == ["main", "plain", "shuffled"]
    assert [a.name for a in arms(job(controls=["shuffled"]))] == ["main", "shuffled"]
    assert arms(job())[0].job == job()
    assert not arms(job())[0].shuffle_privileged


@pytest.mark.parametrize("controls", [[], {"none": "neither has a meaning here"}])
def test_a_job_without_controls_has_only_itself(controls):
    assert [a.name for a in arms(job(controls=controls))] == ["main"]


# plain


def test_plain_keeps_the_student_alone_and_the_terms_that_need_nobody_else():
    made = plain()
    assert list(made.members) == ["student"]
    assert [phase.terms for phase in made.phases] == [["bce(student.logit, label)"]]
    assert made.privileged == []


TERMS = {
    "bce(student.logit, label)": True,
    "bce(student.logit, label).rows(present(click))": True,
    "soft(student.hidden[-1], student.hidden[0])": False,  # a lesson from itself is no label
    "bce(teacher.logit, label)": False,
    "soft(student.logit, teacher.logit)": False,
    "soft(student.logit, teacher[:].logit)": False,
    "soft(teacher.logit, student.logit)": False,
    "soft(student.logit, live(mean(teacher.logit, label)))": False,
    "soft(student.logit, label, by=teacher.logit)": False,
    "bce(student.logit, label) * confidence(teacher.logit)": False,
    "l2(label)": False,
}


@pytest.mark.parametrize(("term", "kept"), TERMS.items())
def test_plain_keeps_a_term_if_it_teaches_the_student_alone_from_labels(term, kept):
    made = plain(phases=[{"steps": 3, "terms": ["bce(student.logit, click)", term]}])
    assert made.phases[0].terms == ["bce(student.logit, click)", *([term] if kept else [])]


@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        (["0.1 * bce(student.logit, label)"], ["bce(student.logit, label)"]),
        (["bce(student.logit, label) * step(1, 0.1, at=200)"], ["bce(student.logit, label)"]),
        (
            ["2 * bce(student.logit, label) * ramp(1, 0, over=9)", "bce(student.logit, click).rows(present(click))"],
            ["bce(student.logit, label)", "(bce(student.logit, click) * 0.5).rows(present(click))"],
        ),
        (["bce(student.logit, label).rows(sure(teacher.logit))"], ["bce(student.logit, label)"]),
        (
            ["bce(student.logit, label) * behind(0.1, 1, student.auc, teacher.auc)", "bce(student.logit, click)"],
            ["bce(student.logit, label)", "bce(student.logit, click)"],
        ),
        (["bce(student.logit, label) * 0"], ["bce(student.logit, label) * 0.0"]),
    ],
)
def test_plain_trains_at_full_weight_with_the_terms_in_their_proportions(terms, expected):
    """A control that goes on at a tenth of its loss when the teacher is gone would be a weak opponent."""
    made = plain(phases=[{"steps": 3, "terms": [*terms, "soft(student.logit, teacher.logit)"]}])
    assert made.phases[0].terms == expected
    assert made.problems() == []


def test_plain_drops_phases_left_empty_and_keeps_the_others_as_they_are():
    phases = [
        {"epochs": 3, "terms": ["bce(teacher.logit, label)"]},
        {
            "steps": 7,
            "terms": ["bce(student.logit, label)", "soft(student.logit, teacher.logit)"],
            "stop": {"patience": 2},
        },
        {"epochs": 2, "terms": ["soft(student.logit, teacher.logit)"]},
    ]
    made = plain(phases=phases)
    assert len(made.phases) == 1
    assert made.phases[0] == job(phases=phases).phases[1].model_copy(update={"terms": ["bce(student.logit, label)"]})


def test_plain_changes_nothing_else():
    values = {"where": {"click": 1}, "seeds": 3, "train": {"batch": 16, "refit": True}, "label": ["buy", "click"]}
    made, main = plain(**values, privileged=["dwell_ms"]), job(**values, privileged=["dwell_ms"])
    unchanged = set(type(main).model_fields) - {"members", "phases", "privileged", "controls"}
    assert made.model_dump(include=unchanged) == main.model_dump(include=unchanged)
    assert isinstance(made.controls, NoControls)


def test_plain_gives_the_student_its_own_tables_and_layers_where_it_shared_them():
    made = plain(
        members__student__share={"tables": "teacher", "trunk": "teacher", "own": ["user"]},
        members__teacher={"net": "lr", "trunk": [16, 8]},
    )
    student = made.members["student"]
    assert student.share == Sharing()
    assert student.trunk == [16, 8]


def test_plain_keeps_the_layers_that_others_shared_with_the_student():
    made = plain(members__student__trunk=[8], members__teacher__share={"trunk": "student", "tables": "student"})
    assert made.members["student"] == job(members__student__trunk=[8]).members["student"]


def test_plain_is_a_right_job_by_itself():
    assert plain().problems() == []
    assert plain().problems_with(spec()) == []
    assert arms(plain()) == [type(arms(plain())[0])("main", plain())]


def test_plain_has_no_meaning_where_only_others_teach_the_student():
    with pytest.raises(SpecError) as caught:
        arms(job(phases=[{"epochs": 1, "terms": ["soft(student.logit, teacher.logit)", "bce(teacher.logit, label)"]}]))
    assert caught.value.problems == (
        "plain: without the other members no term teaches 'student'; drop `plain` from controls, or write "
        "`controls: {none: <reason>}`",
    )


# shuffled


def test_shuffled_is_the_whole_job_on_permuted_privileged_columns():
    made = arm("shuffled")
    assert (made.name, made.shuffle_privileged) == ("shuffled", True)
    assert made.job == job(controls=["shuffled"])


def signal(*terms, **values):
    values = {"privileged": [], "members__teacher__view": ["serving"], **values}
    return arm("shuffled", phases=[{"epochs": 1, "terms": list(terms)}], **values)


def test_without_privileged_columns_the_signal_is_permuted_instead():
    made = signal("bce(student.logit, label)", "soft(student.logit, teacher.logit, temperature=2)")
    assert (made.name, made.shuffle_privileged) == ("shuffled_signal", False)
    assert made.job.phases[0].terms == [
        "bce(student.logit, label)",
        "soft(student.logit, shuffled(teacher.logit), temperature=2)",
    ]


SIGNALS = {
    "soft(student.logit, teacher.logit)": "soft(student.logit, shuffled(teacher.logit))",
    "soft(student.logit, teacher.logit) * -2": "soft(student.logit, shuffled(teacher.logit)) * -2",
    "0.5 * soft(student.logit, mean(teacher[:].logit), label)": (
        "0.5 * soft(student.logit, shuffled(mean(teacher[:].logit)), label)"
    ),
    "(f(student.logit, teacher.logit) * 2).rows(present(click))": (
        "(f(student.logit, shuffled(teacher.logit)) * 2).rows(present(click))"
    ),
    "f(student.hidden[-1], student.logit, teacher.hidden[-1])": (
        "f(student.hidden[-1], shuffled(student.logit), shuffled(teacher.hidden[-1]))"
    ),
    "soft(teacher.logit, student.logit)": "soft(teacher.logit, student.logit)",
    "bce(teacher.logit, label)": "bce(teacher.logit, label)",
}


@pytest.mark.parametrize(("term", "shuffled"), SIGNALS.items())
def test_exactly_the_targets_that_the_student_takes_from_members_are_permuted(term, shuffled):
    made = signal("soft(student.logit, teacher.embed)", term)
    assert made.job.phases[0].terms == ["soft(student.logit, shuffled(teacher.embed))", shuffled]
    assert made.job.problems() == []


CHOICES = {
    "bce(student.logit, label).rows(smallest(bce(teacher.logit, label), keep=0.8))": (
        "bce(student.logit, label).rows(smallest(bce(shuffled(teacher.logit), label), keep=0.8))"
    ),
    "bce(student.logit, label).rows(beats(teacher.logit, student.logit, label))": (
        "bce(student.logit, label).rows(beats(shuffled(teacher.logit), student.logit, label))"
    ),
    "bce(teacher.logit, label).rows(smallest(bce(student.logit, label), keep=0.8))": (
        "bce(teacher.logit, label).rows(smallest(bce(student.logit, label), keep=0.8))"
    ),
    "bce(student.logit, corrected(label, student.logit, most=0.5))": (
        "bce(student.logit, corrected(label, shuffled(student.logit), most=0.5))"
    ),
    "l2(experts(student.embed, teacher.embed, count=3), teacher.embed)": (
        "l2(experts(student.embed, shuffled(teacher.embed), count=3), shuffled(teacher.embed))"
    ),
    "l2(adapt(student.embed, width=8), teacher.hidden[-1])": (
        "l2(adapt(student.embed, width=8), shuffled(teacher.hidden[-1]))"
    ),
    "bce(student.logit, live(corrected(label, teacher.logit)))": (
        "bce(student.logit, live(corrected(label, shuffled(teacher.logit))))"
    ),
}


@pytest.mark.parametrize(("term", "shuffled"), CHOICES.items())
def test_what_members_choose_or_correct_is_permuted_and_labels_are_not(term, shuffled):
    made = signal("soft(student.logit, teacher.embed)", term)
    assert made.job.phases[0].terms == ["soft(student.logit, shuffled(teacher.embed))", shuffled]
    assert made.job.problems() == []


def test_plain_keeps_no_feed_that_nobody_reads():
    feeds = {"pool": {"log": "pool.parquet"}, "both": {"mix": {"log": 1, "few": 1}}, "few": {"sample": 9}}
    updates = [
        {"feed": "both", "terms": ["bce(student.logit, label)"]},
        {"feed": "pool", "terms": ["soft(student.logit, teacher.logit)"]},
    ]
    made = plain(feeds=feeds, phases=[{"steps": 3, "updates": updates}])
    assert [move.feed for phase in made.phases for move in phase.moves] == ["both"]
    assert sorted(made.feeds) == ["both", "few"]


def test_plain_takes_labels_as_they_are():
    term = "bce(student.logit, corrected(label, teacher.logit)).rows(smallest(bce(teacher.logit, label), keep=0.8))"
    assert plain(phases=[{"steps": 3, "terms": [term]}]).phases[0].terms == ["bce(student.logit, label)"]


def test_the_signal_control_keeps_every_member_phase_and_setting():
    made = signal("soft(student.logit, teacher.logit)", seeds=2).job
    main = job(privileged=[], members__teacher__view=["serving"], seeds=2, controls=["shuffled"])
    assert made.members == main.members
    assert made.model_dump(exclude={"phases"}) == main.model_dump(exclude={"phases"})
    assert made.phases[0].epochs == 1


def test_shuffled_has_no_meaning_where_the_student_receives_nothing():
    with pytest.raises(SpecError) as caught:
        signal("bce(student.logit, label)", "soft(teacher.logit, student.logit)")
    assert caught.value.problems == (
        "shuffled: 'student' receives nothing from a member that could be permuted; drop `shuffled` from controls, or "
        "write `controls: {none: <reason>}`",
    )


def test_both_controls_of_a_job_are_derived_from_the_job_and_not_from_each_other():
    made = arms(job(privileged=[], members__teacher__view=["serving"]))
    assert [a.name for a in made] == ["main", "plain", "shuffled_signal"]
    assert made[2].job.phases[1].terms == ["soft(student.logit, shuffled(teacher.logit), temperature=2)"]
    assert made[0].job.phases[1].terms == ["soft(student.logit, teacher.logit, temperature=2)"]


# several students


FURTHER = {
    "student": {"net": {"mlp": [8]}, "serve": True},
    "light": {"net": {"mlp": [4]}, "share": {"tables": "student"}, "compare": True},
    "teacher": {"net": {"mlp": [8]}, "view": ["serving", "privileged"]},
}
LESSONS = {
    "steps": 3,
    "terms": [
        "bce(student.logit, label)",
        "bce(light.logit, label) * 0.5",
        "bce(teacher.logit, label)",
        "soft(light.logit, student.logit)",
        "soft(student.logit, teacher.logit)",
    ],
}


def test_each_student_has_a_plain_control_of_its_own_and_all_share_the_shuffled_one():
    found = {a.name: a for a in arms(job(members=FURTHER, phases=[LESSONS]))}
    assert list(found) == ["main", "plain", "plain_light", "shuffled"]
    assert [(a.of, a.control) for a in found.values()] == [
        (None, "main"), ("student", "plain"), ("light", "plain"), (None, "shuffled")
    ]  # fmt: skip
    for name, student in (("plain", "student"), ("plain_light", "light")):
        alone = found[name].job
        assert list(alone.members) == [student] == alone.students and alone.members[student].serve
        assert [phase.terms for phase in alone.phases] == [[f"bce({student}.logit, label)"]]
        assert alone.members[student].share == Sharing()
    assert found["shuffled"].shuffle_privileged and found["shuffled"].job.members == found["main"].job.members


def test_what_further_students_receive_is_permuted_as_well_where_nothing_is_privileged():
    members = {**FURTHER, "teacher": {"net": {"mlp": [8]}}}
    lessons = {**LESSONS, "terms": [*LESSONS["terms"], "soft(light.logit, teacher.logit)"]}
    terms = arm("shuffled", members=members, phases=[lessons], privileged=[]).job.phases[0].terms
    assert "soft(light.logit, shuffled(teacher.logit))" in terms
    assert "soft(student.logit, shuffled(teacher.logit))" in terms
