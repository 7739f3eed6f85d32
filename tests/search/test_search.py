"""Loops around training: the policy finds what pays, and the gradient through training is the right one."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from recdistill.errors import TrainingError
from recdistill.losses.supervised import bce
from recdistill.search.bilevel import Course, Rows, distill_rows, inner_steps, parameters_of
from recdistill.search.reinforce import Reinforce, compression_reward

DECISIONS = [("a", "b", "c"), (1, 2), (True, False)]
BEST = ("b", 2, False)


def reward(chosen: tuple[object, ...]) -> float:
    return sum(one == best for one, best in zip(chosen, BEST, strict=True)) / 3


@pytest.mark.parametrize("seed", range(5))
def test_the_policy_comes_to_prefer_what_pays(seed: int) -> None:
    policy = Reinforce(trials=120, seed=seed)
    found = policy.search(DECISIONS, reward)
    assert found.best.chosen == BEST and len(found.trials) == 120
    late = [trial.reward for trial in found.trials[-30:]]
    early = [trial.reward for trial in found.trials[:30]]
    assert sum(late) > sum(early) + 3
    assert all(int(logits.argmax()) == place for logits, place in zip(policy.logits, (1, 1, 1), strict=True))


def test_a_policy_that_is_told_the_opposite_prefers_the_opposite() -> None:
    """The wrong twin: a step against the reward."""
    found = Reinforce(trials=120, rate=-1.0).search(DECISIONS, reward)
    assert sum(t.reward for t in found.trials[-30:]) < sum(t.reward for t in found.trials[:30]) - 3


def test_the_same_seed_searches_alike_and_nothing_is_trained_twice() -> None:
    asked: list[tuple[object, ...]] = []
    first = Reinforce(trials=40, seed=1).search(DECISIONS, lambda c: (asked.append(c), reward(c))[1])
    assert first == Reinforce(trials=40, seed=1).search(DECISIONS, reward)
    assert first != Reinforce(trials=40, seed=2).search(DECISIONS, reward)
    assert len(asked) == len({*asked}) <= 12


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(TrainingError, match="needs decisions with choices"):
        Reinforce().search([()], reward)
    with pytest.raises(TrainingError, match="judge trials by finite numbers"):
        Reinforce().search(DECISIONS, lambda _: math.nan)


def test_the_reward_of_compression_grows_with_both_and_saturates() -> None:
    assert compression_reward(100, 100, 0.7, 0.7) == 0
    gains = [compression_reward(100 - saved, 100, 0.7, 0.7) for saved in (0, 25, 50, 75)]
    assert all(b > a for a, b in pairwise(gains))
    assert gains[1] - gains[0] > gains[3] - gains[2]
    assert compression_reward(50, 100, 0.7, 0.7) > compression_reward(50, 100, 0.65, 0.7)


class Linear(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(torch.randn(3, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) @ self.w


def outer(rows: Tensor, rates: Tensor, *, through: bool = True) -> Tensor:
    """The outer loss as a function of invented rows and step sizes."""
    head = Linear(0)
    label = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    learned = inner_steps(head, parameters_of(head), rows, label, rates, create_graph=through)
    real = torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = (real.sum(1) > 0).double()
    return bce(torch.func.functional_call(head, learned, (real,)), target).mean()


def test_the_gradient_through_training_agrees_with_differences() -> None:
    rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    rates = torch.tensor([0.1, 0.3, 0.2], dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(outer, (rows, rates))


def test_a_gradient_that_stops_at_the_last_step_does_not() -> None:
    """The wrong twin: without the graph of the inner steps, rows of earlier steps are never taught."""
    rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    rates = torch.tensor([0.1, 0.3], dtype=torch.float64)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(outer(rows, rates, through=False), rows)


def real_rows(seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2000, 8, generator=generator)
    y = (torch.rand(2000, generator=generator) < torch.sigmoid(2 * x[:, 0] - 2 * x[:, 1])).float()
    return list(zip(x.split(200), y.split(200), strict=True))


class Small(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)[:, 0]


def judged(rows: Rows, seed: int = 0) -> float:
    from recdistill.evaluation import auc

    head = rows.train(Small(seed))
    x, y = (torch.cat(parts) for parts in zip(*real_rows(9), strict=True))
    with torch.no_grad():
        return auc(y.numpy(), head(x).numpy())


def test_a_few_learned_rows_teach_what_as_many_random_ones_do_not() -> None:
    learned = distill_rows(Small, lambda: real_rows(0), 8, Course(rows=10, steps=5, epochs=20))
    embed, label = (torch.cat(parts) for parts in zip(*real_rows(0), strict=True))
    random = [judged(Rows(embed[10 * k : 10 * k + 10], label[10 * k : 10 * k + 10], learned.rate_S)) for k in range(5)]
    assert judged(learned) > max(random) + 0.02
    assert judged(learned) > 0.85
    assert bool((learned.rate_S > 0).all())


def test_rows_that_never_move_teach_nothing() -> None:
    """The wrong twin: an outer step of size zero."""
    still = distill_rows(Small, lambda: real_rows(0), 8, Course(rows=10, steps=5, epochs=20, adam=(0.0, 0.5, 0.999)))
    with pytest.raises(AssertionError):
        assert judged(still) > 0.85


def test_too_few_rows_or_steps_are_refused() -> None:
    with pytest.raises(TrainingError, match="needs two rows and one step"):
        distill_rows(Small, lambda: real_rows(0), 8, Course(rows=1, steps=5))
