"""Codes: exactly -1 or +1, with the gradients and the distribution that they promise."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recdistill.data.draws import uniforms
from recdistill.errors import TrainingError
from recdistill.export.artefact import scripted
from recdistill.losses.embedding import quantisation
from recdistill.nets.binary import KINDS, Binariser, BinaryTwoTower, bits, cut, spread, stochastic, through
from recdistill.nets.inputs import Field, Inputs

INPUTS = Inputs(tuple(Field(name, 4 * i, 4, embedded=True) for i, name in enumerate(("user", "item", "city"))))


def tower(kind: str = "stochastic") -> BinaryTwoTower:
    torch.manual_seed(0)
    return BinaryTwoTower(INPUTS, 1, item=["item"], mlp=[6], bits=16, kind=kind)


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=20))
def test_a_code_is_exactly_minus_or_plus_one_and_passes_the_gradient_on(values) -> None:
    relaxed = torch.tensor(values, requires_grad=True)
    for code in (cut(relaxed), stochastic(relaxed, torch.rand(len(values)))):
        assert set(code.tolist()) <= {-1.0, 1.0}
        weight = torch.randn(len(values))
        assert torch.equal(torch.autograd.grad((code * weight).sum(), relaxed)[0], weight)


def test_the_usual_straight_through_would_not_be_exact() -> None:
    relaxed = torch.tanh(torch.randn(10_000) * 1e-3)  # small, as codes are when training begins
    drawn = -bits(relaxed)  # as may be drawn
    assert set((relaxed + (drawn - relaxed)).unique().tolist()) != {-1.0, 1.0}
    assert set(through(relaxed, drawn).unique().tolist()) == {-1.0, 1.0}


def test_the_mean_of_drawn_codes_is_the_relaxed_code_and_their_spread_the_penalty() -> None:
    relaxed = torch.tensor([-1.0, -0.9, -0.2, 0.0, 0.55, 1.0], dtype=torch.float64)
    draws = uniforms(torch.arange(40_000), 6, purpose="codes", seed=0)
    code = stochastic(relaxed.expand(40_000, 6), draws)
    assert torch.allclose(code.mean(0), relaxed, atol=0.015)
    assert torch.allclose((code - relaxed).square().mean(), quantisation(relaxed.unsqueeze(0))[0], atol=0.01)
    assert code[:, 0].unique().tolist() == [-1] and code[:, 5].unique().tolist() == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_are_exact_in_any_precision(dtype: torch.dtype) -> None:
    relaxed, code = Binariser()(torch.randn(1000).to(dtype))
    assert code.dtype == relaxed.dtype == dtype
    assert set(code.float().unique().tolist()) == {-1.0, 1.0}


def test_codes_drawn_by_row_do_not_depend_on_the_batch() -> None:
    raw, rows = torch.randn(20, 8), torch.arange(20) * 7
    whole = Binariser()(raw, uniforms(rows, 8, purpose="codes", seed=0, step=5))[1]
    half = Binariser()(raw[10:], uniforms(rows[10:], 8, purpose="codes", seed=0, step=5))[1]
    assert torch.equal(half, whole[10:])
    assert not torch.equal(whole, Binariser()(raw, uniforms(rows, 8, purpose="codes", seed=0, step=6))[1])


def test_draws_come_from_pytorchs_generator_unless_handed_in() -> None:
    raw = torch.randn(50, 8)
    torch.manual_seed(1)
    first = Binariser()(raw)[1]
    torch.manual_seed(1)
    assert torch.equal(Binariser()(raw)[1], first)
    assert not torch.equal(Binariser()(raw)[1], first)


def test_what_is_served_is_cut_whatever_was_trained() -> None:
    raw = torch.randn(50, 8)
    for kind in ("stochastic", "cut"):
        relaxed, code = Binariser(kind).eval()(raw)
        assert torch.equal(code, raw.sign()) and torch.equal(relaxed, torch.tanh(raw))
    relaxed, code = Binariser("real").eval()(raw)
    assert relaxed is code is raw


@pytest.mark.parametrize("kind", KINDS)
def test_a_scripted_binary_tower_equals_the_eager_one(kind: str) -> None:
    net, rows = tower(kind).eval(), torch.randn(5, INPUTS.width)
    again = scripted(net)
    assert torch.equal(again(rows).logits_BK, net(rows).logits_BK)
    assert torch.equal(again.train()(rows).logits_BK.isfinite(), torch.ones(5, 1, dtype=torch.bool))


def test_the_score_of_a_binary_tower_counts_equal_bits() -> None:
    net, rows = tower().eval(), torch.randn(7, INPUTS.width)
    out = net(rows)
    user, item = bits(out.hidden[0]), bits(out.hidden[1])
    assert set(user.unique().tolist()) | set(item.unique().tolist()) == {-1.0, 1.0}
    equal = (user == item).sum(1)
    assert torch.allclose(out.logits_BK[:, 0], 2 / 16**0.5 * (2.0 * equal - 16))
    assert [h.shape for h in out.hidden] == [(7, 16)] * 4
    assert torch.equal(out.hidden[2], net.scale * user) and torch.equal(out.hidden[3], item)


def test_codes_of_one_side_do_not_read_the_other() -> None:
    net, rows = tower().eval(), torch.randn(7, INPUTS.width)
    changed = rows.clone()
    changed[:, 4:8] += 1  # the item's field
    before, after = net(rows), net(changed)
    assert torch.equal(before.hidden[2], after.hidden[2])
    assert not torch.equal(before.hidden[3], after.hidden[3])


def test_towers_learn_through_their_codes() -> None:
    net, rows = tower(), torch.randn(40, INPUTS.width)
    out = net(rows)
    (out.logits_BK.sum() + quantisation(out.hidden[0]).sum()).backward()
    parameters = dict(net.towers.named_parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters.values())


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(TrainingError, match="expected one of stochastic, cut, after, real"):
        Binariser("ternary")


@pytest.mark.parametrize("bits", [20, 32, 100, 1000])
@pytest.mark.parametrize("beta", [2.0, 0.7])
def test_codes_that_differ_in_as_many_bits_score_the_same(bits: int, beta: float) -> None:
    """To the last bit, or ties would be broken by how float32 rounds, and lists be others than those that serve."""
    generator = torch.Generator().manual_seed(bits)
    user, items = (torch.sign(torch.randn(rows, bits, generator=generator)) for rows in (40, 500))
    scores = (spread(beta, bits) * user) @ items.t()
    assert torch.equal(scores / spread(beta, bits), user @ items.t())
    assert spread(beta, bits) == pytest.approx(beta / bits**0.5, rel=2.5e-4)
    assert not torch.equal((beta / bits**0.5 * user) @ items.t() / (beta / bits**0.5), user @ items.t())
