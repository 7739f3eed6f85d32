"""Terms, signals, schedules and layouts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recdistill.data.batch import Batch, Jagged, View
from recdistill.distill.compile import examine
from recdistill.distill.layout import assemble, lay_out
from recdistill.distill.member import Member
from recdistill.distill.schedule import Now, ramp, step
from recdistill.distill.selector import equals, present
from recdistill.distill.signal import Column, Live, Logit, Scene, Shuffled
from recdistill.distill.term import Term, reduce
from recdistill.errors import TrainingError
from recdistill.losses.response import soft
from recdistill.losses.supervised import bce
from recdistill.nets.catalog import Net
from recdistill.nets.inputs import Outputs
from recdistill.spec.features import FeatureSpec
from recdistill.spec.job import Job
from recdistill.spec.members import Sharing
from recdistill.training.sharding import Lookup
from tests.conftest import Small

NAN = float("nan")


def batch(rows: int = 6, label: list[float] | None = None, weight: list[float] | None = None) -> Batch:
    view = View("serving", torch.zeros(0, rows, dtype=torch.int64), (), torch.zeros(rows, 0), ())
    labels = {"y": torch.tensor(label or [1.0, 0, 1, 0, NAN, NAN][:rows])}
    return Batch(torch.arange(rows) * 7919, view, labels, torch.tensor(weight or [1.0] * rows))


def scene(b: Batch, seed: int = 0) -> Scene:
    logits = {
        name: Outputs(
            torch.randn(len(b), 1, generator=torch.Generator().manual_seed(k), requires_grad=True),
            [],
            torch.zeros(len(b), 1),
            [],
        )
        for k, name in enumerate(("student", "teacher"))
    }
    return Scene(logits, b, seed)


def bce_term(**changes: object) -> Term:
    return Term("bce", bce, Logit("student"), (Column("y"),), **changes)


def test_rows_whose_label_is_not_known_take_no_part() -> None:
    s = scene(batch())
    loss, weight = bce_term().losses(s)
    assert weight.tolist() == [1, 1, 1, 1, 0, 0]
    expected = bce(s.outputs["student"].logits_BK[:4, 0], s.batch.labels["y"][:4]).mean()
    assert torch.allclose(reduce(loss, weight, weight.sum()), expected)


def test_selectors_choose_rows_by_a_column() -> None:
    s = scene(batch())
    assert bce_term(rows=equals(Column("y"), 1)).losses(s)[1].tolist() == [1, 0, 1, 0, 0, 0]
    term = Term("soft", soft, Logit("student"), (Logit("teacher"),), rows=present(Column("y")))
    assert term.losses(s)[1].tolist() == [1, 1, 1, 1, 0, 0]


def test_weight_two_is_the_row_twice_and_weight_zero_is_the_row_absent() -> None:
    loss = torch.tensor([1.0, 2.0, 4.0])
    twice = torch.tensor([1.0, 2.0, 2.0, 4.0])
    weight = torch.tensor([1.0, 2.0, 1.0])
    assert torch.allclose(reduce(loss, weight, weight.sum()), reduce(twice, torch.ones(4), torch.tensor(4.0)))
    absent = torch.tensor([1.0, 0.0, 1.0])
    assert torch.allclose(reduce(loss, absent, absent.sum()), torch.tensor(2.5))


def test_a_row_that_takes_no_part_cannot_spoil_the_sum() -> None:
    loss = torch.tensor([1.0, float("inf"), NAN])
    assert float(reduce(loss, torch.tensor([1.0, 0, 0]), torch.tensor(1.0))) == 1.0
    assert float(reduce(loss, torch.zeros(3), torch.tensor(0.0))) == 0.0


def test_only_the_learner_receives_a_gradient_unless_the_target_is_live() -> None:
    for target, reached in ((Logit("teacher"), False), (Live(Logit("teacher")), True)):
        s = scene(batch())
        loss, weight = Term("soft", soft, Logit("student"), (target,)).losses(s)
        inputs = [s.outputs[name].logits_BK for name in ("student", "teacher")]
        student, teacher = torch.autograd.grad(reduce(loss, weight, weight.sum()), inputs, allow_unused=True)
        assert bool(student.any())
        assert (teacher is not None) is reached


def test_a_term_multiplies_by_numbers_and_schedules() -> None:
    term = 2 * bce_term() * step(0, 0.5, at=3) * 3
    assert [term.weight(Now(k, 100)) for k in (2, 3)] == [0, 3.0]
    assert term.words == "bce * 2 * step(0, 0.5, at=3) * 3"


def test_schedules_count_steps_or_fractions_of_the_phase() -> None:
    assert [step(1, 0, at=0.1).weight(Now(k, 200)) for k in (19, 20)] == [1, 0]
    assert [ramp(0, 2, over=0.5).weight(Now(k, 10)) for k in (0, 1, 5, 9)] == [0, 0.4, 2, 2]
    for wrong in (lambda: step(0, 1, at=-1), lambda: ramp(0, 1, over=0), lambda: ramp(0, 1, over=5, begin=-1)):
        with pytest.raises(TrainingError):
            wrong()


@settings(max_examples=40)
@given(st.integers(2, 40), st.integers(0, 5), st.randoms())
def test_a_shuffled_signal_moves_every_row_and_follows_the_rows_when_they_are_reordered(
    rows: int, seed: int, random
) -> None:
    b = batch(rows, label=[0.0] * rows)
    value = torch.arange(rows, dtype=torch.float32)
    outputs = {"teacher": Outputs(value.unsqueeze(1), [], value.unsqueeze(1), [])}
    found = Shuffled(Logit("teacher")).value(Scene(outputs, b, seed))
    assert sorted(found.tolist()) == value.tolist()
    assert not bool((found == value).any())
    order = torch.tensor(random.sample(range(rows), rows))
    other = Batch(b.row_id_B[order], b.serving, b.labels, b.weight_B)
    outputs = {"teacher": Outputs(value[order].unsqueeze(1), [], value[order].unsqueeze(1), [])}
    assert torch.equal(Shuffled(Logit("teacher")).value(Scene(outputs, other, seed)), found[order])


def test_a_row_alone_in_its_batch_has_no_other_value_to_be_given() -> None:
    outputs = {"teacher": Outputs(torch.tensor([[3.0]]), [], torch.zeros(1, 1), [])}
    assert Shuffled(Logit("teacher")).value(Scene(outputs, batch(1, label=[0.0]), 0)).tolist() == [3.0]


def test_another_seed_shuffles_differently() -> None:
    b = batch(40, label=[0.0] * 40)
    outputs = {"teacher": Outputs(torch.arange(40.0).unsqueeze(1), [], torch.zeros(40, 1), [])}
    first, second = (Shuffled(Logit("teacher")).value(Scene(outputs, b, seed)) for seed in (0, 1))
    assert not torch.equal(first, second)


SPEC = FeatureSpec.model_validate(
    {
        "serving": {
            "tags": {"type": "list", "vocabulary": "item"},
            "user": "categorical",
            "price": "numeric",
            "item": "categorical",
        },
        "post_event": {"y": "binary", "dwell": "numeric", "stars": "categorical"},
    }
)
ROWS = {"user": 5, "item": 9, "stars": 4}


def members() -> list[Member]:
    net = Net("mlp", {"layers": []})
    serving = ("tags", "user", "price", "item")
    student = Member("student", net, serving, serve=True, dim=4)
    return [student, Member("teacher", net, serving, ("dwell", "stars"), dim=4, share=Sharing(tables="student"))]


def test_a_layout_gives_every_column_one_table_and_one_place() -> None:
    layout = lay_out(members(), SPEC, ROWS)
    assert {name: bank.tables for name, bank in layout.banks.items()} == {
        "student": {"user": 5, "item": 9},
        "teacher": {"stars": 4},
    }
    assert [f.column for f in layout.banks["student"].features] == ["user", "item", "tags"]
    teacher = layout.members["teacher"].inputs
    assert [(f.name, f.start, f.width) for f in teacher.fields] == [
        ("user", 0, 4), ("item", 4, 4), ("tags", 8, 4), ("stars", 12, 4), ("price", 16, 1), ("dwell", 17, 1),
    ]  # fmt: skip


def test_assembling_puts_slices_averages_and_numbers_in_their_places() -> None:
    layout = lay_out(members(), SPEC, ROWS)
    bags = {"tags": Jagged(torch.zeros(3, dtype=torch.int64), torch.tensor([2, 1]))}
    serving = View(
        "serving",
        torch.zeros(2, 2, dtype=torch.int64),
        ("user", "item"),
        torch.tensor([[0.5], [0.7]]),
        ("price",),
        bags,
    )
    after = View(
        "privileged", torch.zeros(1, 2, dtype=torch.int64), ("stars",), torch.tensor([[8.0], [9.0]]), ("dwell",)
    )
    b = Batch(torch.arange(2), serving, {}, torch.ones(2), after)
    vectors = {"student": torch.arange(24.0).reshape(2, 12), "teacher": torch.full((2, 4), 3.0)}
    leaves = {bank: Lookup(leaf, leaf) for bank, leaf in vectors.items()}
    found = assemble(layout.members["teacher"], leaves, b).flat_BE
    assert found[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 4, 4.5, 5, 5.5, 3, 3, 3, 3, 0.5, 8.0]
    assert found[1, 8:12].tolist() == [20, 21, 22, 23]


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (["bce(student.logitt, y)"], "did you mean 'student.logit'"),
        (["bce(studnet.logit, y)"], "neither a member's output nor a binary column; did you mean 'student'"),
        (["bec(student.logit, y)"], "unknown loss 'bec'; did you mean 'bce'"),
        (["bce(student.logit)"], "missing a required argument: 'label_B'"),
        (["soft(student.logit, teacher.logit, temprature=2)"], "unexpected keyword argument 'temprature'"),
        (["soft(student.logit, teacher.logit, temperature=-1)"], "temperature must be positive"),
        (["bce(y, y)"], "the first argument learns"),
        (["bce(student.logit, dwell)"], "'dwell' is neither"),
        (["bce(student.logit, y) * l2(student.logit, teacher.logit)"], "exactly one loss"),
        (["bce(student.logit, y) * stp(1, 0, at=1)"], "unknown word 'stp' in"),
        (["bce(student.logit, y) * stp(1, 0, at=1)"], "did you mean 'step'?"),
        (["soft(student.logit, label)"], "soft(student.logit, label): y is a label, no logit; use bce"),
        (["soft_list(student.logit, y)"], "soft_list(student.logit, y): y is a label, no logit; use bce"),
        (
            ["bce(student.logit, y)", "soft(student.logit, gate(student.logit, teacher.logit, by=student.embed))"],
            "gate(student.logit, teacher.logit, by=student.embed): no term teaches it; add one in which it stands "
            "first, such as bce(gate(student.logit, teacher.logit, by=student.embed), label)",
        ),
        (["2 * 3"], "exactly one loss, found none"),
        (["bce(student.logit, y) * ramp(0, 1)"], "missing a required argument: 'over'"),
        (["bce(student.logit, y) * step(0, 1, at=-5)"], "at must not be negative"),
        (["bce(student.logit, y).rows(smaller(y, 1))"], "is no selector"),
        (
            ["bce(student.logit, y).rows(equals(teacher.logit, 1))"],
            "expected a raw binary column or `scenario`, found teacher.logit",
        ),
        (["soft(student.logit, twisted(teacher.logit))"], "unknown signal 'twisted'"),
        (["soft(student.logit, live(teacher.logit, 2))"], "too many positional arguments; live takes (signal)"),
        (["bce(student.logit, y, over='batches')"], "over is 'batches'"),
        (["bce(student.logit, 1)"], "expected a member's output or a column"),
        (["bce(student.logit, y)"], "members.teacher: no term teaches it"),
    ],
)
def test_a_wrong_term_is_explained(terms: list[str], message: str) -> None:
    raw = {
        "spec": "-", "log": "-", "label": "y", "privileged": ["dwell"],
        "members": {
            "student": {"net": {"mlp": [4]}, "serve": True},
            "teacher": {"net": {"mlp": [4]}, "view": ["serving", "privileged"]},
        },
        "phases": [{"epochs": 1, "terms": terms}],
    }  # fmt: skip
    _, problems = examine(Job.model_validate(raw), SPEC)
    assert any(message in problem for problem in problems), problems


def test_terms_of_several_labels_reach_their_own_logit(small: Small) -> None:
    plan, _, _ = small.plan(
        {
            "label": ["purchase", "click"],
            "members.teacher.labels": "purchase",
            "phases.0.terms": [
                "bce(student.logit, purchase)",
                "bce(student.logit.click, click)",
                "bce(teacher.logit, label)",
            ],
        }
    )
    learners = [term.learner for term in plan.phases[0].terms]
    assert learners == [Logit("student", 0), Logit("student", 1), Logit("teacher", 0)]
    assert plan.labels == 2 and plan.columns == ("purchase", "click")
