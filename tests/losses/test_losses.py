"""What single losses over rows, lists and the batch promise beyond what holds for all of them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from recdistill.errors import ShapeError, TrainingError
from recdistill.losses.catalog import LOSSES
from recdistill.losses.response import soft
from tests.losses.cases import CASES, LISTS
from tests.oracles import losses as oracle


def test_mmd_compares_batches_and_no_rows() -> None:
    learner, target = torch.randn(6, 4), torch.randn(6, 4)
    found = LOSSES["mmd"](learner, target)
    assert found.shape == ()
    assert torch.allclose(LOSSES["mmd"](learner, target.flip(0)), found)
    assert float(LOSSES["mmd"](learner, learner.flip(0))) < 1e-12


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
    learner, target = CASES["soft_list"].draw(1).columns
    shifted = target + torch.tensor([5.0, -3.0, 0.5])[LISTS]
    listwise = [LOSSES["soft_list"](learner, t, list_B=LISTS) for t in (target, shifted)]
    assert torch.allclose(*listwise, rtol=1e-12)
    assert not torch.allclose(soft(learner, target), soft(learner, shifted), rtol=0.1)


def test_categorical_refuses_a_lone_logit_and_two_of_them() -> None:
    for shape in ((4,), (4, 1), (4, 2)):
        with pytest.raises(ShapeError, match="a lone logit takes bce"):
            LOSSES["categorical"](torch.zeros(shape), torch.zeros(shape))


def test_soft_refuses_layers_and_temperatures_that_are_not_positive() -> None:
    with pytest.raises(ShapeError, match="for layers use l2"):
        soft(torch.zeros(3, 1), torch.zeros(3, 1))
    with pytest.raises(TrainingError, match="temperature must be positive"):
        soft(torch.zeros(3), torch.zeros(3), temperature=0)


def test_pairwise_over_a_batch_is_the_mean_over_all_pairs_of_two_classes() -> None:
    logit, label = CASES["pairwise"].draw(1).columns
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


@pytest.mark.parametrize("rows", range(1, 10))
def test_in_a_small_batch_no_row_is_compared_with_itself(rows: int) -> None:
    """A student who orders all other rows as its teacher does, by more than the margin, has nothing to learn."""
    angle_B = torch.arange(rows, dtype=torch.float64) ** 2 / 40  # the distances of any row to two others differ
    student_BH = torch.stack([angle_B.cos(), angle_B.sin()], 1).requires_grad_()
    loss_B = LOSSES["relative_order"](student_BH, student_BH.detach(), margin=1e-4)
    (slope_BH,) = torch.autograd.grad(loss_B.sum(), student_BH)
    assert not slope_BH.any()
    other_BH = torch.randn(rows, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))
    expected = oracle.relative_order(student_BH.detach().numpy(), [other_BH.numpy()], 0.2, 4)
    assert np.allclose(LOSSES["relative_order"](student_BH, other_BH).detach().numpy(), expected, rtol=1e-10)


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
