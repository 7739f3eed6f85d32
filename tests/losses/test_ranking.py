"""Losses over candidates: each against its equation, and what all of them have in common."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recdistill.errors import ShapeError, TrainingError
from recdistill.losses import embedding, ranking, ranking_distillation
from recdistill.losses.embedding import half_square, quantisation
from recdistill.losses.ranking import bpr, sampled_softmax
from recdistill.losses.ranking_distillation import cd, rd, rrd, soft_sides, unkd
from tests.oracles import ranking as oracle

B, M = 6, 9
NAN = float("nan")


@dataclass(frozen=True)
class Case:
    """A loss, its reference, and the columns of its targets."""

    loss: Callable[..., Tensor]
    reference: Callable[..., float]
    targets: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)


CASES = {
    "bpr": Case(bpr, oracle.bpr, ("label",)),
    "sampled_softmax": Case(sampled_softmax, oracle.sampled_softmax, ("label",)),
    "sampled_softmax, corrected": Case(
        sampled_softmax, oracle.sampled_softmax, ("label", "log_q"), {"temperature": 0.7}
    ),
    "soft_sides": Case(
        soft_sides, oracle.soft_sides, ("teacher", "label"), {"temperature": 0.5, "student_temperature": 2.0}
    ),
    "rd, by place": Case(rd, oracle.rd, ("teacher",), {"top": 4, "position": 3.0}),
    "rd": Case(rd, oracle.rd, ("teacher",), {"top": 4, "position": 3.0, "discrepancy": 0.1, "items": 40}),
    "cd": Case(cd, oracle.cd, ("teacher",), {"temperature": 2.0, "shift": 0.5}),
    "rrd": Case(rrd, oracle.rrd, ("teacher",), {"interesting": 4}),
    "rrd, all": Case(rrd, oracle.rrd, ("teacher",), {"interesting": 20}),
    "unkd": Case(unkd, oracle.unkd, ("teacher", "group")),
}
PLAIN = ("bpr", "sampled_softmax", "soft_sides", "rd", "cd", "rrd", "unkd")


def columns(seed: int = 0, *, absent: float = 0.2) -> dict[str, Tensor]:
    """Scores and targets; some candidates do not exist, row 0 has no positive, row 1 no negative, row 2 nothing."""
    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(B, M, generator=generator, dtype=torch.float64)

    label = (torch.rand(B, M, generator=generator, dtype=torch.float64) < 0.4).double()
    label[0], label[1] = 0, 1
    is_absent = torch.rand(B, M, generator=generator) < absent
    is_absent[2] = True
    found = {
        "student": normal() * 2, "teacher": (normal() * 4).round() / 2, "label": label, "log_q": normal(),
        "group": torch.randint(3, (B, M), generator=generator).double(),
    }  # fmt: skip
    for name in ("teacher", "label"):
        found[name] = found[name].masked_fill(is_absent, NAN)
    return found


def call(case: Case, data: dict[str, Tensor], student: Tensor | None = None, **options: Any) -> Tensor:
    learner = data["student"] if student is None else student
    return case.loss(learner, *(data[name] for name in case.targets), **(case.options | options))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(5))
def test_a_loss_equals_its_equation(name: str, seed: int) -> None:
    case, data = CASES[name], columns(seed)
    targets = [data[t].numpy() for t in case.targets]
    if case.loss is unkd:  # the group of a candidate that does not exist is nobody's
        targets[1] = np.where(np.isnan(targets[0]), np.nan, targets[1])
    expected = oracle.per_anchor(case.reference, data["student"].numpy(), *targets, **case.options)
    assert np.allclose(call(case, data).numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_the_flat_form_equals_the_matrix_whatever_the_order_of_its_rows(name: str) -> None:
    case, data = CASES[name], columns(1)
    data = {n: column[[0, 1, 3, 4, 5]] for n, column in data.items()}  # a list without a row cannot be numbered
    label = data["label"] if "label" in case.targets else data["teacher"]
    expected = call(case, data)
    anchor, place = (~label.isnan()).nonzero(as_tuple=True)
    order = torch.randperm(len(anchor), generator=torch.Generator().manual_seed(0))
    order = order[torch.argsort(place[order], stable=True)]  # ties of the teacher fall by the order of rows
    flat = {n: column[anchor, place][order] for n, column in data.items()}
    assert torch.allclose(call(case, flat, list_B=anchor[order]), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_anchors_do_not_see_each_other(name: str) -> None:
    case, data = CASES[name], columns(2)
    whole = call(case, data)
    order = torch.tensor([4, 2, 5, 0, 3, 1])
    assert torch.equal(call(case, {n: column[order] for n, column in data.items()}), whole[order])
    assert torch.allclose(call(case, {n: column[3:4] for n, column in data.items()}), whole[3:4], rtol=1e-14)


@pytest.mark.parametrize("name", CASES)
def test_a_gradient_agrees_with_differences(name: str) -> None:
    case, data = CASES[name], columns(3)
    assert torch.autograd.gradcheck(lambda x: call(case, data, x), data["student"].clone().requires_grad_())


@pytest.mark.parametrize("name", CASES)
def test_what_is_no_candidate_gets_no_gradient_and_may_hold_anything(name: str) -> None:
    case, data = CASES[name], columns(4)
    is_absent = data["teacher"].isnan() | data["label"].isnan()
    student = data["student"].masked_fill(is_absent, NAN).requires_grad_()
    found = call(case, data, student)
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert torch.equal(found, call(case, data))
    assert bool((gradient[is_absent] == 0).all()) and bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [80.0, 3e4])
def test_a_loss_is_finite_at_extremes(name: str, dtype: torch.dtype, size: float) -> None:
    case = CASES[name]
    student = torch.tensor([[-size, 0, 0, size], [size, size, -size, -size]], dtype=dtype).requires_grad_()
    data = {
        "teacher": torch.tensor([[size, -size, 0, -size], [NAN, size, -size, -size]], dtype=dtype),
        "label": torch.tensor([[1, 0, 1, 0], [0, 0, 1, NAN]], dtype=dtype),
        "log_q": torch.tensor([[-30, -1, -2, -3], [-1, -1, -1, -30]], dtype=dtype),
        "group": torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]], dtype=dtype),
    }
    found = call(case, data, student, **({"top": 2} if case.loss is rd else {}))
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert found.dtype == torch.float32
    assert bool(torch.isfinite(found).all()) and bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("name", CASES)
def test_shapes_that_would_broadcast_are_refused(name: str) -> None:
    case, data = CASES[name], columns()
    where = name.split(",")[0]
    for target in case.targets:
        with pytest.raises(ShapeError, match=f"{where}: compares scores"):
            call(case, data | {target: data[target][:1]})
    with pytest.raises(ShapeError, match=rf"{where}: compares scores \(B, M\)"):
        call(case, {n: c.flatten() for n, c in data.items()})
    with pytest.raises(ShapeError, match=rf"{where}: compares scores \(B,\) with list_B"):
        call(case, data, list_B=torch.zeros(B, dtype=torch.int64))
    with pytest.raises(ShapeError, match=f"{where}: list_B has shape"):
        call(case, {n: c[0] for n, c in data.items()}, list_B=torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("name", CASES)
def test_no_anchors_lose_nothing(name: str) -> None:
    case, data = CASES[name], columns()
    assert call(case, {n: c[:0] for n, c in data.items()}).shape == (0,)
    none = torch.zeros(0, dtype=torch.int64)
    if case.loss is not rd:
        assert call(case, {n: c[0, :0] for n, c in data.items()}, list_B=none).shape == (0,)


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
        (lambda s, t: rd(s, t, top=3, discrepancy=0.1, items=9), "at least one more than 3 candidates"),
        (lambda s, t: rrd(s, t, interesting=0), "rrd: expected a number of at least 1"),
    ],
)
def test_options_out_of_range_are_refused(loss, message) -> None:
    with pytest.raises(TrainingError, match=message):
        loss(torch.zeros(2, 3), torch.zeros(2, 3))


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
    data = columns(5)
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
    from recdistill.losses.response import soft

    data = columns(7, absent=0)
    student, teacher = data["student"][3:], data["teacher"][3:]
    by_row = soft(student.flatten(), teacher.flatten()).view(student.shape).mean(1)
    assert torch.allclose(cd(student, teacher), by_row)


def test_quantisation_is_the_expected_distance_of_drawn_codes() -> None:
    relaxed = torch.tanh(torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert np.allclose(quantisation(relaxed).numpy(), oracle.quantisation(relaxed.numpy(), 20_000), atol=0.01)
    assert quantisation(relaxed.sign()).tolist() == [0, 0, 0]
    assert torch.autograd.gradcheck(quantisation, relaxed.clone().requires_grad_())
    with pytest.raises(ShapeError, match="quantisation"):
        quantisation(relaxed[0])


def test_half_the_square_equals_its_equation() -> None:
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    assert torch.allclose(half_square(vector), 0.5 * torch.linalg.vector_norm(vector, dim=1) ** 2)
    with pytest.raises(ShapeError, match="half_square"):
        half_square(vector[0])


def test_a_docstring_says_what_a_reader_needs() -> None:
    found = [
        f for module in (ranking, ranking_distillation, embedding) for f in vars(module).values()
        if inspect.isfunction(f) and f.__module__ == module.__name__ and not f.__name__.startswith("_")
    ]  # fmt: skip
    losses = [f for f in found if f.__name__ != "positive_temperature"]
    assert len(losses) == 9
    for loss in losses:
        text = inspect.getdoc(loss) or ""
        wanted = ("Args:", "Returns:", "Raises:", "Example:", "Source:", "Departure:")
        assert [part for part in wanted if part not in text] == [], loss.__name__
