"""Tables with an optimizer of their member's own."""

from typing import Any

import torch

from recdistill.training.sharding import process_group
from tests.conftest import Small
from tests.training.bench import BCE, OTHER, STUDENT, Bench

PHASES = [{"steps": 2, "terms": [BCE, "bce(other.logit, label)"]}]


def moved(small: Small, own: dict[str, Any]) -> dict[str, float]:
    """How far one step moves the tables of each member."""
    with process_group():
        bench = Bench.of(small, {"student": {**STUDENT, **own}, "other": OTHER}, PHASES)
        before = {name: bench.state(name) for name in ("student", "other")}
        bench.step()
        return {name: tables_moved(before[name], bench.state(name)) for name in before}


def tables_moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    return sum(float((value - before[key]).norm()) for key, value in after.items() if key.startswith("tables"))


def test_a_member_s_tables_step_at_its_own_rate(small: Small) -> None:
    common, own = moved(small, {}), moved(small, {"tables": {"sgd": {"lr": 1.0}}})
    assert own["student"] > 1.9 * common["student"] > 0
    assert own["other"] == common["other"]


def test_a_member_s_tables_are_penalised_by_its_own_weight(small: Small) -> None:
    common, own = moved(small, {}), moved(small, {"tables": {"sgd": {"lr": 0.5, "l2": 50.0}}})
    assert own["student"] > 1.5 * common["student"]
    assert own["other"] == common["other"]


def test_rare_values_are_penalised_though_the_job_does_not_ask_for_it(small: Small) -> None:
    common, own = moved(small, {}), moved(small, {"tables": {"sgd": {"lr": 0.5, "l2_rare": 50.0}}})
    assert own["student"] > 1.5 * common["student"]
    assert own["other"] == common["other"]
