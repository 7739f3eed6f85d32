"""Every loss against its equation, and what all losses have in common."""

import ast
import inspect
import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recdistill.errors import ShapeError, TrainingError
from recdistill.losses.catalog import LOSSES
from recdistill.losses.response import soft
from recdistill.losses.scope import scope_of
from tests.oracles import losses as oracle

LISTS = torch.tensor([0, 1, 0, 2, 1, 0, 2])
CASES = {
    "bce": (oracle.bce, {}),
    "soft": (lambda s, t: oracle.soft(s, t, 3.0), {"temperature": 3.0}),
    "categorical": (oracle.categorical, {}),
    "l2": (oracle.l2, {}),
    "soft_list": (lambda s, t: oracle.soft_list(s, t, LISTS.numpy(), 3.0), {"temperature": 3.0, "list_B": LISTS}),
    "softened": (lambda s, t: oracle.softened(s, t, 3.0, 0.2), {"temperature": 3.0, "base": 0.2}),
    "score_gap": (lambda s, _: oracle.score_gap(s, LISTS.numpy(), 2), {"top": 2, "list_B": LISTS}),
    "mmd": (oracle.mmd, {}),
    "pairwise": (oracle.pairwise, {}),
    "relative_order": (lambda s, t: oracle.relative_order(s, [t], 0.3, 2), {"margin": 0.3, "triplets": 2}),
}
PER_ROW = [name for name in CASES if scope_of(LOSSES[name]) == "row" and name != "relative_order"]
PER_LIST = [name for name in CASES if scope_of(LOSSES[name]) == "list"]
WITHOUT_TARGET = ("score_gap",)
LAYERS = ("relative_order", "categorical")


def value_of(name: str, learner: Tensor, target: Tensor, **options: Any) -> Tensor:
    """The loss; with the learner alone where it takes no target."""
    return LOSSES[name](learner, *([] if name in WITHOUT_TARGET else [target]), **options)


def inputs(name: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (7, 3) if name in LAYERS else (7,)
    learner, target = (torch.randn(shape, generator=generator, dtype=dtype) * 3 for _ in range(2))
    if name == "pairwise":
        return learner, (target > 0).to(dtype)
    return learner, torch.sigmoid(target) if name in ("bce", "categorical") else target


def test_every_loss_has_an_oracle() -> None:
    assert CASES.keys() == LOSSES.keys()


@pytest.mark.parametrize("name", CASES)
def test_a_loss_equals_its_equation(name: str) -> None:
    reference, options = CASES[name]
    learner, target = inputs(name)
    found = value_of(name, learner, target, **options)
    assert np.allclose(found.numpy(), reference(learner.numpy(), target.numpy()), rtol=1e-12)


@pytest.mark.parametrize("name", PER_ROW)
def test_a_loss_gives_one_value_per_row_whatever_the_order(name: str) -> None:
    learner, target = inputs(name)
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    found = LOSSES[name](learner, target, **CASES[name][1])
    assert found.shape == (7,)
    assert torch.allclose(LOSSES[name](learner[order], target[order], **CASES[name][1]), found[order], rtol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_a_gradient_agrees_with_differences(name: str) -> None:
    learner, target = inputs(name)
    assert torch.autograd.gradcheck(lambda x: value_of(name, x, target, **CASES[name][1]), learner.requires_grad_())


@pytest.mark.parametrize("name", PER_LIST)
def test_a_loss_over_lists_gives_one_value_per_list_whatever_the_order(name: str) -> None:
    learner, target = inputs(name)
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    found = value_of(name, learner, target, **CASES[name][1])
    moved = value_of(name, learner[order], target[order], **{**CASES[name][1], "list_B": LISTS[order]})
    assert found.shape == (3,)
    assert torch.allclose(moved, found, rtol=1e-12)


def test_mmd_compares_batches_and_no_rows() -> None:
    learner, target = torch.randn(6, 4), torch.randn(6, 4)
    found = LOSSES["mmd"](learner, target)
    assert found.shape == ()
    assert torch.allclose(LOSSES["mmd"](learner, target.flip(0)), found)
    assert float(LOSSES["mmd"](learner, learner.flip(0))) < 1e-12
    assert float(found) == pytest.approx(oracle.mmd(learner.numpy(), target.numpy()), abs=1e-5)


def test_the_gap_leaves_rows_below_the_first_ones_alone() -> None:
    """But for the common denominator: the gradient of such a row is -f times the gap."""
    logit = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0], dtype=torch.float64, requires_grad=True)
    gap = LOSSES["score_gap"](logit, list_B=torch.zeros(5, dtype=torch.int64), top=3)
    (gradient,) = torch.autograd.grad(gap.sum(), logit)
    share = torch.softmax(logit.detach(), 0)
    assert torch.allclose(gradient[3:], -share[3:] * gap.detach())
    assert float(gap.detach()) == pytest.approx(float(share[0] - (share[1] + share[2]) / 2))
    assert float(gradient[0]) > 0 > float(gradient[1])


def test_softened_keeps_the_base_rate_and_softened_around_one_half_raises_it() -> None:
    student = torch.tensor([0.3], dtype=torch.float64)
    rare = torch.logit(torch.tensor([0.02], dtype=torch.float64))
    expected = LOSSES["bce"](student, torch.tensor([0.02], dtype=torch.float64))
    assert torch.allclose(LOSSES["softened"](student, rare, base=0.02, temperature=3), expected)
    assert float(torch.sigmoid(rare / 3)) > 0.2
    for options in ({"temperature": 0}, {"base": 0}, {"base": 1}):
        with pytest.raises(TrainingError, match="softened: temperature must be positive"):
            LOSSES["softened"](student, rare, **options)
    with pytest.raises(TrainingError, match="score_gap: top is at least 2"):
        LOSSES["score_gap"](student, list_B=torch.zeros(1, dtype=torch.int64), top=1)


def test_a_constant_on_the_logits_of_a_list_changes_no_loss_over_lists_but_the_pointwise_one() -> None:
    learner, target = inputs("soft_list")
    shifted = target + torch.tensor([5.0, -3.0, 0.5])[LISTS]
    listwise = [LOSSES["soft_list"](learner, t, list_B=LISTS) for t in (target, shifted)]
    assert torch.allclose(*listwise, rtol=1e-12)
    assert not torch.allclose(soft(learner, target), soft(learner, shifted), rtol=0.1)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loss_is_finite_at_extremes(name: str, dtype: torch.dtype) -> None:
    learner = torch.tensor([-80.0, -1e-3, 0.0, 80.0], dtype=dtype)
    target = torch.tensor([1.0, 0.0, 0.5, 0.0], dtype=dtype) if name == "bce" else learner.flip(0)
    target = (target > 0).to(dtype) if name == "pairwise" else target
    if name == "categorical":
        learner, target = learner.repeat(3, 1).T.contiguous().roll(1, 1), (target > 0).to(dtype).repeat(3, 1).T
    elif name in LAYERS:
        learner, target = learner.unsqueeze(1), target.unsqueeze(1)
    learner.requires_grad_()
    options = CASES[name][1] | ({"list_B": torch.tensor([0, 0, 1, 1])} if name in PER_LIST else {})
    found = value_of(name, learner, target, **options)
    (gradient,) = torch.autograd.grad(found.sum(), learner)
    assert bool(torch.isfinite(found).all()) and bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("name", CASES)
def test_shapes_that_would_broadcast_are_refused(name: str) -> None:
    learner, target = inputs(name)
    with pytest.raises(ShapeError, match=name):
        value_of(name, learner.unsqueeze(1), target, **CASES[name][1])
    for wrong in (target.unsqueeze(1), target[:1]) if name not in WITHOUT_TARGET else ():
        with pytest.raises(ShapeError, match=name):
            value_of(name, learner, wrong, **CASES[name][1])


def test_categorical_refuses_a_lone_logit_and_two_of_them() -> None:
    for shape in ((4,), (4, 1), (4, 2)):
        with pytest.raises(ShapeError, match="a lone logit takes bce"):
            LOSSES["categorical"](torch.zeros(shape), torch.zeros(shape))


def test_soft_refuses_layers_and_temperatures_that_are_not_positive() -> None:
    with pytest.raises(ShapeError, match="for layers use l2"):
        soft(torch.zeros(3, 1), torch.zeros(3, 1))
    with pytest.raises(TrainingError, match="temperature must be positive"):
        soft(torch.zeros(3), torch.zeros(3), temperature=0)


def test_of_several_labels_the_cross_entropies_add_up() -> None:
    logit, label = torch.randn(5, 3, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64)
    expected = sum(oracle.bce(logit[:, k].numpy(), label[:, k].numpy()) for k in range(3))
    assert np.allclose(LOSSES["bce"](logit, label).numpy(), expected, rtol=1e-12)


def test_pairwise_over_a_batch_is_the_mean_over_all_pairs_of_two_classes() -> None:
    logit, label = inputs("pairwise")
    pairs = [float(F.softplus(n - p)) for p in logit[label == 1] for n in logit[label == 0]]
    assert float(LOSSES["pairwise"](logit, label).mean()) == pytest.approx(sum(pairs) / len(pairs))
    assert not bool(LOSSES["pairwise"](logit, torch.ones(7, dtype=torch.float64)).any())


def test_a_majority_orders_and_equal_votes_say_nothing() -> None:
    student = torch.randn(9, 4, dtype=torch.float64)
    teachers = [torch.randn(9, width, dtype=torch.float64) for width in (2, 3, 5, 6)]
    for count in (2, 3, 4):
        expected = oracle.relative_order(student.numpy(), [t.numpy() for t in teachers[:count]], 0.2, 4)
        assert np.allclose(LOSSES["relative_order"](student, *teachers[:count]).numpy(), expected, rtol=1e-10)
    layer = torch.tensor([[0.0], [1.0], [3.0]], dtype=torch.float64)
    opposite = torch.tensor([[0.0], [3.0], [1.0]], dtype=torch.float64)
    assert float(LOSSES["relative_order"](student[:3], layer, opposite, triplets=1)[0]) == 0
    with pytest.raises(TrainingError, match="needs a teacher and at least one pair"):
        LOSSES["relative_order"](student, layer, triplets=0)


def test_l2_compares_layers_by_their_mean_over_the_width() -> None:
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    assert np.allclose(LOSSES["l2"](student, teacher).numpy(), oracle.l2(student.numpy(), teacher.numpy()), rtol=1e-5)


@settings(max_examples=50)
@given(st.floats(-20, 20), st.floats(-20, 20), st.floats(0.5, 50))
def test_the_gradient_of_soft_is_the_difference_of_softened_probabilities_times_t(
    s: float, t: float, temperature: float
) -> None:
    student = torch.tensor([s], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        soft(student, torch.tensor([t], dtype=torch.float64), temperature=temperature), student
    )
    expected = temperature * (oracle.sigmoid(s / temperature) - oracle.sigmoid(t / temperature))
    assert float(gradient) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_a_docstring_says_what_a_reader_needs(name: str) -> None:
    text = inspect.getdoc(LOSSES[name]) or ""
    wanted = ["Args:", "Returns:", "Raises:", "Example:"] + ([] if name == "bce" else ["Source:", "Departure:"])
    assert [part for part in wanted if part not in text] == []
    assert re.search(r"\(B,", text)


def test_losses_have_no_state_and_no_parameters() -> None:
    for name, loss in LOSSES.items():
        tree = ast.parse(inspect.getsource(loss))
        assert not any(isinstance(node, ast.Global | ast.Nonlocal) for node in ast.walk(tree)), name
