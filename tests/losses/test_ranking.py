"""What single losses over candidates and vectors promise beyond what holds for all of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recdistill.errors import ShapeError, TrainingError
from recdistill.losses.ranking import bpr, sampled_softmax
from recdistill.losses.ranking_distillation import cd, rd, rrd, soft_sides, unkd
from recdistill.losses.response import soft
from tests.losses.cases import candidates


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda s, t: sampled_softmax(s, t, temperature=0), "sampled_softmax: temperature must be positive"),
        (lambda s, t: soft_sides(s, t, t, temperature=-1), "soft_sides: temperature must be positive"),
        (lambda s, t: soft_sides(s, t, t, student_temperature=0), "soft_sides: temperature must be positive"),
        (lambda s, t: cd(s, t, temperature=0), "cd: temperature must be positive"),
        (lambda s, t: rd(s, t, top=0), "rd: expected a number of at least 1, found 0"),
        (lambda s, t: rd(s, t, top=2, position=0), "rd: position 0"),
        (lambda s, t: rd(s, t, top=2, discrepancy=0.1), "discrepancy needs items, found None"),
        (lambda s, t: rrd(s, t, interesting=0), "rrd: expected a number of at least 1"),
    ],
)
def test_options_out_of_range_are_refused(loss, message) -> None:
    with pytest.raises(TrainingError, match=message):
        loss(torch.zeros(2, 3), torch.zeros(2, 3))


def test_ranks_are_not_estimated_from_nothing() -> None:
    with pytest.raises(ShapeError, match="at least one more than 3 candidates, to estimate ranks from, found 3"):
        rd(torch.zeros(2, 3), torch.zeros(2, 3), top=3, discrepancy=0.1, items=9)


def test_bpr_in_a_batch_costs_the_square_of_the_batch_and_no_more() -> None:
    score = torch.randn(600, 600, requires_grad=True)
    found = bpr(score, torch.eye(600))
    found.sum().backward()
    assert score.grad is not None and float(score.grad.diagonal().max()) < 0


def test_with_the_correction_draws_by_popularity_estimate_the_softmax_over_all_items() -> None:
    generator = torch.Generator().manual_seed(0)
    items, drawn = 30, 20_000
    full = torch.randn(items, generator=generator, dtype=torch.float64)
    q = torch.softmax(full + 0.5 * torch.randn(items, generator=generator, dtype=torch.float64), 0)
    sample = torch.multinomial(q, drawn, replacement=True, generator=generator)
    log_q = (drawn * q[sample]).log().unsqueeze(0)
    score = torch.cat([full[:1], full[sample]]).unsqueeze(0)
    label = torch.tensor([[1.0] + [0.0] * drawn], dtype=torch.float64)
    log_q = torch.cat([torch.zeros(1, 1), log_q], 1)
    corrected = float(sampled_softmax(score, label, log_q.double()))
    exact = float(torch.log(full[0].exp() + full.exp().sum()) - full[0])
    plain = float(sampled_softmax(score, label))
    assert corrected == pytest.approx(exact, abs=0.02)
    assert abs(plain - exact) > 1


def test_the_sides_are_apart_a_constant_on_one_of_them_changes_nothing() -> None:
    data = candidates(5)
    moved = data["student"] + 7 * data["label"].nan_to_num()
    found = [soft_sides(s, data["teacher"], data["label"]) for s in (data["student"], moved)]
    assert torch.allclose(*found, rtol=1e-12)
    assert not torch.allclose(*(bpr(s, data["label"]) for s in (data["student"], moved)), rtol=0.1)


def test_rrd_teaches_the_order_of_the_top_and_leaves_that_of_the_rest_free() -> None:
    teacher = torch.tensor([[5.0, 4, 3, 2, 1, 0]])
    student = torch.tensor([[3.0, 2, 1, 0, -1, -2]])

    def loss(order: list[int]) -> float:
        return float(rrd(student[:, order], teacher, interesting=3))

    straight = loss([0, 1, 2, 3, 4, 5])
    assert loss([0, 1, 2, 5, 3, 4]) == pytest.approx(straight, rel=1e-6)
    assert loss([1, 0, 2, 3, 4, 5]) > straight + 0.1
    assert loss([0, 1, 3, 2, 4, 5]) > straight + 0.1


def test_rd_weighs_by_place_and_forgives_what_the_student_ranks_well() -> None:
    teacher = torch.tensor([[9.0, 8, 1, 2, 3, 0]])
    good = torch.tensor([[3.0, 2, 0, 0, 0, 0]])
    bad = torch.tensor([[-1.0, -1, 0, 0, 0, 0]])
    options = {"top": 2, "discrepancy": 0.5, "items": 100}
    assert float(rd(good, teacher, **options)) == 0.0 < float(rd(good, teacher, top=2))
    assert float(rd(bad, teacher, **options)) > 1
    gradient = torch.autograd.functional.jacobian(lambda s: rd(s, teacher, **options).sum(), bad)[0]
    assert gradient[0] < gradient[1] < 0 and bool((gradient[2:] == 0).all())


@given(st.floats(-3, 3), st.floats(-3, 3))
@settings(max_examples=30)
def test_unkd_teaches_nothing_across_groups(first: float, second: float) -> None:
    group, teacher = torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[1.0, 0, 5, 4]])
    student = torch.tensor([[0.3, 0.1, 0.7, 0.2]])
    shift = torch.tensor([[first, first, second, second]])
    assert torch.allclose(unkd(student + shift, teacher, group), unkd(student, teacher, group), atol=1e-6)


def test_cd_at_unit_temperature_is_the_mean_of_soft_over_candidates() -> None:
    data = candidates(7, absent=0)
    student, teacher = data["student"][3:], data["teacher"][3:]
    by_row = soft(student.flatten(), teacher.flatten()).view(student.shape).mean(1)
    assert torch.allclose(cd(student, teacher), by_row)
