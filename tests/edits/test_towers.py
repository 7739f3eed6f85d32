"""Edits of hidden layers: what is left of the parameters, and what they still compute."""

import pytest
import torch
from torch import nn

from recdistill.edits.towers import Drop, Shrink, layers_of, transplant
from recdistill.errors import TrainingError
from recdistill.nets.catalog import Net
from recdistill.nets.inputs import Field, Inputs
from tests.conftest import Small
from tests.training.bench import LAST, Bench, problems

INPUTS = Inputs((Field("a", 0, 4, True), Field("b", 4, 4, True)))
NETS = {"mlp": "layers", "deepfm": "mlp", "dcn_v2": "mlp"}


def built(name: str, widths: list[int], seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Net(name, {NETS[name]: widths}).build(INPUTS, 1)


@pytest.mark.parametrize("name", NETS)
def test_nothing_is_lost_where_only_dead_units_go(name: str) -> None:
    old = built(name, [6, 5])
    with torch.no_grad():
        for unit in (1, 4):
            old.stack.blocks[0][0].weight[unit] = 0
            old.stack.blocks[0][0].bias[unit] = 0
    edit = Shrink(0, 4 / 6)
    new = built(name, edit.widths([6, 5]), seed=1)
    assert not torch.allclose(new(x := torch.randn(50, 8)).logits_BK, old(x).logits_BK)
    transplant(old, new, [edit])
    assert torch.allclose(new(x).logits_BK, old(x).logits_BK, atol=1e-6)


def test_a_shrunken_layer_keeps_the_units_that_matter_most() -> None:
    old = built("mlp", [6])
    layers = layers_of(old)
    importance = layers.weights[0].norm(dim=1) * layers.weights[1][0].abs()
    kept = Shrink(0, 0.5).layers(layers)
    best = sorted(torch.topk(importance, 3).indices.tolist())
    assert torch.equal(kept.weights[0], layers.weights[0][best])
    assert torch.equal(kept.weights[1], layers.weights[1][:, best])


def test_a_dropped_layer_is_multiplied_out() -> None:
    old = built("mlp", [6, 5, 4])
    new = built("mlp", Drop(1).widths([6, 5, 4]), seed=1)
    transplant(old, new, [Drop(1)])
    x = torch.randn(40, 8)
    first = old.stack.blocks[0](x)
    linear = [block[0] for block in old.stack.blocks]
    expected = old.out(torch.relu(linear[2](linear[1](first))))
    assert torch.allclose(new(x).logits_BK, expected, atol=1e-6)


def test_edits_follow_each_other() -> None:
    edits = [Drop(0), Shrink(0, 0.5), Shrink(1, 0.25)]
    widths = [8, 6, 4]
    for edit in edits:
        widths = edit.widths(widths)
    assert widths == [3, 1]
    new = built("dcn_v2", widths, seed=1)
    transplant(built("dcn_v2", [8, 6, 4]), new, edits)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Drop(3), "no hidden layer 3; there are 2"),
        (Shrink(0, 0.0), r"a share in \(0, 1\]"),
        (Shrink(-1, 0.5), "no hidden layer -1"),
    ],
)
def test_edits_that_cannot_be_are_refused(edit: Drop | Shrink, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        edit.widths([4, 4])
    with pytest.raises(TrainingError, match="would leave no hidden layer"):
        Drop(0).widths([4])
    with pytest.raises(TrainingError, match="has no `stack` of hidden layers"):
        layers_of(nn.Linear(2, 2))


def test_a_student_begins_as_its_edited_teacher_and_then_learns(small: Small, group: None) -> None:
    members = {
        "teacher": {"net": {"mlp": [16, 8]}, "dim": 4},
        "student": {"edit": {"of": "teacher", "by": ["shrink(0, keep=0.5)"]}, "serve": True},
    }
    terms = ["bce(student.logit, label)", "l2(student.logit, teacher.logit)"]
    phases = [{"steps": 3, "terms": ["bce(teacher.logit, label)"], **LAST}, {"steps": 3, "terms": terms, **LAST}]
    b = Bench.of(small, members, phases)
    assert dict(b.cast.members["student"].net.options) == {"layers": [8, 8]}
    b.engine.run(0, b.plan.phases[0])
    teacher, untouched = b.state("teacher"), b.state("student")
    b.engine._begin(1, b.plan.phases[1])
    student = b.state("student")
    assert torch.equal(student["tables.student.city"], teacher["tables.teacher.city"])
    assert torch.equal(student["student.net.out.weight"], teacher["teacher.net.out.weight"])
    assert not torch.equal(student["student.net.out.weight"], untouched["student.net.out.weight"])
    b.engine.run(1, b.plan.phases[1])
    assert not torch.equal(b.state("student")["student.net.out.weight"], student["student.net.out.weight"])
    assert all(torch.equal(value, teacher[name]) for name, value in b.state("teacher").items())


def test_unknown_edits_are_named(small: Small) -> None:
    for by, message in (
        (["dorp(0)"], "members.student.edit.by.0: dorp(0) is no edit; did you mean 'drop'?"),
        (["drop(7)"], "members.student.edit.by.0: drop: no hidden layer 7; there are 2"),
        (["shrink(0.5, keep=1)"], "expected a whole number, found 0.5"),
    ):
        members = {
            "teacher": {"net": {"mlp": [16, 8]}, "dim": 4},
            "student": {"edit": {"of": "teacher", "by": by}, "serve": True},
        }
        phases = [{"steps": 1, "terms": ["bce(teacher.logit, label)", "bce(student.logit, label)"]}]
        found = problems(small, members, phases)
        assert any(message in problem for problem in found), found
