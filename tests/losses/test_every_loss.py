"""What holds for every loss of the catalogue: one suite, which a new loss enters by its case."""

import ast
import inspect
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from recdistill.data.batch import Batch, Candidates, View
from recdistill.distill.combine import live
from recdistill.distill.ranked import Mark
from recdistill.distill.signal import Scene, Traits
from recdistill.distill.term import Term, reduce
from recdistill.errors import ShapeError
from recdistill.losses.catalog import LOSSES
from recdistill.losses.scope import is_in_batch
from tests.losses.cases import CASES, NAN, Case, Inputs

each = pytest.mark.parametrize("name", CASES)
MATRICES = [name for name, case in CASES.items() if case.ranks]


def test_every_loss_is_tried_here() -> None:
    assert {case.name for case in CASES.values()} == LOSSES.keys()


@each
@pytest.mark.parametrize("seed", range(4))
def test_a_loss_equals_its_equation(name: str, seed: int) -> None:
    case = CASES[name]
    inputs = case.draw(seed)
    assert np.allclose(case(inputs).numpy(), case.expected(inputs), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("seed", range(2))
def test_the_flat_form_equals_the_matrix(name: str, seed: int) -> None:
    matrix, flat = CASES[name], CASES[f"{name}, flat"]
    expected = matrix(matrix.draw(seed))[[0, 1, 3, 4, 5]]
    assert torch.allclose(flat(flat.draw(seed)), expected, rtol=1e-12, atol=1e-14)


@each
def test_the_order_of_rows_changes_nothing(name: str) -> None:
    """Lists keep their values; values of rows go with the rows. Of ``relative_order`` the rows are in a circle."""
    case = CASES[name]
    inputs = case.draw(0)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    if case.name == "relative_order":
        order = torch.arange(len(inputs)).roll(2)
    expected = case(inputs)[order] if case.scope == "row" else case(inputs)
    assert torch.allclose(case(inputs.at(order)), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", MATRICES)
def test_the_order_of_candidates_changes_nothing(name: str) -> None:
    case = CASES[name]
    inputs = case.draw(0)
    order = torch.randperm(inputs.columns[0].shape[1], generator=torch.Generator().manual_seed(0))
    assert torch.allclose(case(inputs.at((slice(None), order))), case(inputs), rtol=1e-12, atol=1e-14)


@dataclass(frozen=True)
class Given(Traits):
    """A signal that is known beforehand."""

    of_rows: Tensor
    members: frozenset[str] = frozenset()

    def value(self, scene: Scene) -> Tensor:
        return self.of_rows


@dataclass(frozen=True)
class GivenOfCandidates(Mark):
    """The same with a value for every candidate."""

    of_rows: Tensor | None = None

    def value(self, scene: Scene) -> Tensor:
        assert self.of_rows is not None
        return self.of_rows


def term_of(case: Case, inputs: Inputs, weight_B: Tensor) -> tuple[Term, Scene]:
    """The term ``loss(learner, targets...)`` on given rows."""
    rows = len(inputs)
    nothing = View("serving", torch.zeros(0, rows, dtype=torch.int64), (), torch.zeros(rows, 0), ())
    own = Candidates("user", (), {"own": inputs.columns[0].detach()}) if case.ranks else None
    batch = Batch(torch.arange(rows), nothing, {}, weight_B, group_B=inputs.list_N, candidates=own)
    learner, *targets = (GivenOfCandidates("", of_rows=c) if case.ranks else Given(c) for c in inputs.columns)
    loss = LOSSES[case.name]
    scope, in_batch = case.scope, is_in_batch(loss)
    term = Term(case.name, loss, learner, tuple(targets), case.options, scope=scope, in_batch=in_batch)
    return term, Scene({}, batch)


def value_of(case: Case, inputs: Inputs, weight_B: Tensor | None = None) -> Tensor:
    """The scalar of the term."""
    term, scene = term_of(case, inputs, torch.ones(len(inputs)) if weight_B is None else weight_B)
    loss, weight = term.losses(scene)
    return reduce(loss, weight, weight.sum())


@each
def test_weight_zero_is_a_row_that_is_absent(name: str) -> None:
    case = CASES[name]
    inputs = case.draw(2)
    weight_B = torch.ones(len(inputs)).index_fill(0, torch.tensor([1, 4]), 0.0)
    assert torch.allclose(value_of(case, inputs, weight_B), value_of(case, inputs.at(weight_B > 0)), rtol=1e-12)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.meets])
def test_weight_two_is_a_row_or_a_list_that_is_there_twice(name: str) -> None:
    case = CASES[name]
    inputs = case.draw(2)
    twice = torch.arange(len(inputs)) == 3 if inputs.list_N is None else inputs.list_N == 1
    again = inputs.at(twice)
    if again.list_N is not None and inputs.list_N is not None:
        again = replace(again, list_N=again.list_N + inputs.list_N.max())
        again_lists = torch.cat([inputs.list_N, again.list_N])
    else:
        again_lists = None
    whole = Inputs(tuple(map(torch.cat, zip(inputs.columns, again.columns, strict=True))), again_lists)
    assert torch.allclose(value_of(case, inputs, 1.0 + twice), value_of(case, whole), rtol=1e-12)


@each
def test_targets_are_taught_only_if_they_are_live(name: str) -> None:
    case = CASES[name]
    inputs = case.draw(3)
    columns = tuple(c.clone().requires_grad_() for c in inputs.columns)
    term, scene = term_of(case, Inputs(columns, inputs.list_N), torch.ones(len(inputs)))
    losses, weight = term.losses(scene)
    total = reduce(losses, weight, weight.sum())
    learner, *targets = torch.autograd.grad(total, columns, allow_unused=True)
    assert learner is not None and bool(learner.any())
    assert all(gradient is None for gradient in targets)
    if case.name in ("soft", "l2", "mmd"):  # the alarm: it rings for targets that are not detached
        loss, weight = replace(term, targets=tuple(map(live, term.targets))).losses(scene)
        (gradient,) = torch.autograd.grad(loss.sum(), columns[1])
        assert bool(gradient.any())


@each
def test_a_gradient_agrees_with_differences(name: str) -> None:
    case = CASES[name]
    inputs = case.draw(2)
    assert torch.autograd.gradcheck(lambda x: case(inputs, x), inputs.columns[0].clone().requires_grad_())


def extreme(kind: str, column: Tensor, how: str) -> Tensor:
    """A column of the same kind with values as far out, or as much alike, as they come."""
    if kind in ("label", "group"):
        return column
    if how == "equal":
        return torch.where(column.isnan(), column, 1.0)
    if kind == "probability":
        return (column > 0.5).to(column.dtype)
    return 1e4 * column.sign()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(n, dtype) for n in CASES for dtype in (torch.float32, torch.bfloat16)] + [(n, torch.float16) for n in MATRICES],
)
@pytest.mark.parametrize("how", ["far", "opposite", "equal"])
def test_a_loss_is_finite_at_extremes(name: str, dtype: torch.dtype, how: str) -> None:
    case = CASES[name]
    inputs = case.draw(1)
    first, *rest = (extreme(kind, c, how) for kind, c in zip(case.kinds, inputs.columns, strict=True))
    if how == "opposite" and rest and case.kinds[1] == "score":
        first = torch.where(rest[0].isnan(), first, -rest[0])
    learner = first.to(dtype).requires_grad_()
    found = case(Inputs((first, *rest), inputs.list_N).to(dtype), learner)
    (gradient,) = torch.autograd.grad(found.sum(), learner)
    assert bool(torch.isfinite(found).all()) and bool(torch.isfinite(gradient).all())
    if case.ranks:
        assert found.dtype == torch.float32


@each
def test_half_precision_stays_near(name: str) -> None:
    """On numbers that both precisions can hold, so that only the arithmetic differs."""
    case = CASES[name]
    half = case.draw(0).to(torch.bfloat16)
    expected, found = case(half.to(torch.float32)), case(half).float()
    assert torch.allclose(found, expected, rtol=0.03, atol=0.03 * float(expected.abs().max()))


@pytest.mark.parametrize("name", MATRICES)
def test_what_is_no_candidate_gets_no_gradient_and_may_hold_anything(name: str) -> None:
    case = CASES[name]
    inputs = case.draw(1)
    is_absent = inputs.columns[1].isnan()
    assert bool(is_absent.any())
    student = inputs.columns[0].masked_fill(is_absent, NAN).requires_grad_()
    found = case(inputs, student)
    (gradient,) = torch.autograd.grad(found.sum(), student)
    assert torch.equal(found, case(inputs))
    assert bool((gradient[is_absent] == 0).all()) and bool(torch.isfinite(gradient).all())


@each
def test_no_rows_lose_nothing(name: str) -> None:
    """A process may be left without rows in the last batch of an epoch: no value then, and a gradient all the same."""
    case = CASES[name]
    inputs = case.draw(0).at(slice(0))
    learner = inputs.columns[0].clone().requires_grad_()
    if case.scope == "batch":  # one value there is; the term takes zero
        found = value_of(case, Inputs((learner, *inputs.columns[1:])))
        assert found == 0
    else:
        found = case(inputs, learner)
        assert found.shape == (0,)
    found.sum().backward()
    assert learner.grad is not None and learner.grad.shape == learner.shape


@each
def test_shapes_that_would_broadcast_are_refused(name: str) -> None:
    case = CASES[name]
    inputs = case.draw(0)
    wrong = [inputs.columns[0].unsqueeze(1), inputs.columns[0][0]]
    for learner in wrong:
        with pytest.raises(ShapeError, match=f"{case.name}:"):
            case(inputs, learner)
    for k in range(1, len(inputs.columns)):
        for target in (inputs.columns[k][:1], inputs.columns[k].unsqueeze(1)):
            columns = (*inputs.columns[:k], target, *inputs.columns[k + 1 :])
            with pytest.raises(ShapeError, match=f"{case.name}:"):
                case(Inputs(columns, inputs.list_N))
    if inputs.list_N is not None:
        with pytest.raises(ShapeError, match=f"{case.name}: list_B has shape"):
            case(replace(inputs, list_N=inputs.list_N[:2]))


@pytest.mark.parametrize("name", LOSSES)
def test_a_docstring_says_what_a_reader_needs(name: str) -> None:
    text = inspect.getdoc(LOSSES[name]) or ""
    wanted = ["Args:", "Returns:", "Raises:", "Example:"] + ([] if name == "bce" else ["Source:", "Departure:"])
    assert [part for part in wanted if part not in text] == []
    assert "(B," in text


def test_losses_have_no_state_and_no_parameters() -> None:
    for name, loss in LOSSES.items():
        tree = ast.parse(inspect.getsource(loss))
        assert not any(isinstance(node, ast.Global | ast.Nonlocal) for node in ast.walk(tree)), name
