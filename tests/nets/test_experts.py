"""Experts and the gate that chooses among them."""

import pytest
import torch

from recdistill.errors import TrainingError
from recdistill.losses.embedding import experts
from recdistill.nets.experts import Experts


def net(count: int = 3) -> Experts:
    torch.manual_seed(0)
    return Experts(4, 6, count=count)


def test_answers_are_those_of_each_expert_and_weights_add_up() -> None:
    student, teacher = torch.randn(5, 4), torch.randn(5, 6)
    answer, weight = net()(student, teacher)
    assert answer.shape == (5, 3, 6) and weight.shape == (5, 3)
    assert torch.allclose(weight.sum(1), torch.ones(5))
    assert torch.allclose(answer[:, 1], net().experts[1](student))


def test_the_choice_is_sharp_at_a_low_temperature_and_follows_the_gate_on_average() -> None:
    model, teacher = net(), torch.randn(1, 6).expand(20_000, 6)
    weight = model(torch.zeros(20_000, 4), teacher, temperature=1e-3)[1]
    assert float((weight.amax(1) > 0.99).float().mean()) > 0.98
    assert torch.allclose(weight.mean(0), torch.softmax(model.gate(teacher[0]), 0), atol=0.02)


def test_nothing_is_drawn_in_eval_mode_and_draws_can_be_handed_in() -> None:
    student, teacher = torch.randn(5, 4), torch.randn(5, 6)
    model = net().eval()
    assert torch.equal(model(student, teacher)[1], model(student, teacher)[1])
    assert torch.allclose(model(student, teacher)[1], torch.softmax(model.gate(teacher), 1))
    drawn = torch.rand(5, 3)
    assert torch.equal(model.train()(student, teacher, drawn)[1], model(student, teacher, drawn)[1])
    assert bool(torch.isfinite(model(student, teacher, torch.zeros(5, 3))[1]).all())


def test_experts_learn_to_answer_as_the_teacher_does() -> None:
    student = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    teacher = student @ torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(100):
        answer, weight = model(student, teacher, temperature=1.0)
        loss = experts(answer, teacher, weight).mean()
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_no_experts_are_refused() -> None:
    with pytest.raises(TrainingError, match="count must be at least 1"):
        Experts(4, 6, count=0)
