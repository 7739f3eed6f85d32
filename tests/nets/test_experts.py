"""Experts from a student's vector to a teacher's, and the gate that chooses among them."""

import pytest
import torch

from recdistill.data.batch import Batch, View
from recdistill.distill.learned import Expert, experts
from recdistill.distill.schedule import Now, Schedule, fixed, ramp
from recdistill.distill.signal import Hidden, Scene
from recdistill.errors import TrainingError
from recdistill.losses.representation import l2
from recdistill.nets.experts import Experts
from recdistill.nets.inputs import Field, Inputs
from recdistill.training.sharding import process_group
from tests.conftest import Small
from tests.oracles import ranking as oracle
from tests.training.bench import BCE, OTHER, STUDENT, Bench

S, T, E = 4, 6, 3
INPUTS = Inputs((Field("student", 0, S, embedded=False), Field("teacher", S, T, embedded=False)))


def net() -> Experts:
    torch.manual_seed(0)
    return Experts(INPUTS, E)


def vectors(rows: int = 5) -> torch.Tensor:
    return torch.randn(rows, S + T, generator=torch.Generator().manual_seed(1))


def mixture(model: Experts, embed: torch.Tensor, temperature: Schedule, step: int = 0) -> torch.Tensor:
    nothing = View("serving", torch.zeros(0, len(embed), dtype=torch.int64), (), torch.zeros(len(embed), 0), ())
    rows = Batch(torch.arange(len(embed)), nothing, {}, torch.ones(len(embed)))
    with torch.no_grad():
        scene = Scene({"mine": model(embed)}, rows, now=Now(step))
        return Expert("mine", Hidden("student", 0), temperature).value(scene)


def test_each_expert_reads_the_student_alone_and_the_gate_the_teacher_alone() -> None:
    model, embed = net(), vectors()
    out = model(embed)
    assert out.logits_BK.shape == (5, E) and [h.shape for h in out.hidden] == [(5, T)] * E
    assert torch.allclose(out.logits_BK.exp().sum(1), torch.ones(5))
    assert torch.allclose(out.hidden[1], model.experts[1](embed[:, :S]))
    assert torch.allclose(out.logits_BK, torch.log_softmax(model.gate(embed[:, S:]), 1))
    assert model.experts[0][0].out_features == (S + T) // 2


def test_the_choice_is_sharp_at_a_low_temperature_and_follows_the_gate_on_average() -> None:
    model, rows = net(), 20_000
    for k, expert in enumerate(model.experts):  # the answer of expert k is k
        torch.nn.init.zeros_(expert[2].weight)
        torch.nn.init.constant_(expert[2].bias, float(k))
    embed = vectors(1).expand(rows, -1)
    chosen = mixture(model, embed, fixed(1e-3))[:, 0]
    assert float(((chosen - chosen.round()).abs() < 0.01).float().mean()) > 0.98
    share = torch.stack([(chosen.round() == k).float().mean() for k in range(E)])
    assert torch.allclose(share, model(embed[:1]).logits_BK[0].exp(), atol=0.02)
    assert float((mixture(model, embed, fixed(1e6)) - 1).abs().max()) < 1e-3  # all alike
    cooling = ramp(1e6, 1e-3, over=10)
    assert torch.equal(mixture(model, embed, cooling, 10), mixture(model, embed, fixed(1e-3), 10))


def test_the_squared_distance_is_that_of_the_equation() -> None:
    model, embed = net(), vectors()
    found = T * l2(mixture(model, embed, fixed(1.0)), embed[:, S:])
    out, chosen = model(embed), mixture(model, embed, fixed(1.0))
    answers = torch.stack(out.hidden, 1)
    gate = torch.linalg.lstsq(answers.transpose(1, 2), chosen.unsqueeze(2)).solution[:, :, 0]  # its weights, solved for
    assert torch.allclose(gate.sum(1), torch.ones(5), atol=1e-4) and bool((gate > 0).all())
    expected = oracle.experts(answers.detach().numpy(), embed[:, S:].numpy(), gate.detach().numpy())
    assert torch.allclose(found.detach(), torch.from_numpy(expected).float(), atol=1e-4)


def test_what_is_drawn_depends_on_row_and_step_alone() -> None:
    model, embed = net(), vectors()
    first = mixture(model, embed, fixed(0.5))
    assert torch.equal(first, mixture(model, embed, fixed(0.5)))
    assert torch.allclose(first[:2], mixture(model, embed[:2], fixed(0.5)))
    assert not torch.allclose(first, mixture(model, embed, fixed(0.5), 1))


def test_experts_gate_and_student_learn_and_the_teacher_does_not(small: Small) -> None:
    term = "l2(experts(student.hidden[-1], teacher.hidden[-1], count=3), teacher.hidden[-1])"
    with process_group():
        bench = Bench.of(small, {"student": STUDENT, "teacher": OTHER}, [
            {"steps": 1, "terms": ["bce(teacher.logit, label)"]}, {"steps": 20, "terms": [BCE, term]},
        ])  # fmt: skip
        assert [m.name for m in bench.plan.members if m.implied] == ["experts0"]
        before = {name: value.clone() for name, value in bench.cast.state(bench.cast.members).items()}
        losses = [float(bench.step(1)[term].detach()) for _ in range(20)]
        moved = {n.split(".")[0] if not n.startswith("tables") else n.split(".")[1]
                 for n, v in bench.cast.state(bench.cast.members).items() if not torch.equal(v, before[n])}  # fmt: skip
        parts = {n for n, v in bench.cast.state({"experts0"}).items() if not torch.equal(v, before[n])}
    assert moved == {"student", "experts0"}
    assert any("gate" in name for name in parts) and any("experts.2" in name for name in parts)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("options", "message"), [({"count": 0}, "count is"), ({"temperature": 0.0}, "stays above 0")])
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        experts(Hidden("student", 0), Hidden("teacher", 0), **options)


def test_a_net_that_reads_anything_else_is_refused() -> None:
    with pytest.raises(TrainingError, match="a student's vector and a teacher's"):
        Experts(Inputs(INPUTS.fields[:1]), E)
