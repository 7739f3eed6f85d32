"""What the README promises of jobs: a new loss is one function and one line, and all mistakes are told at once."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from recdistill.errors import SpecError
from recdistill.losses.catalog import LOSSES
from tests.conftest import Small


def made_up(logit_B: Tensor, target_B: Tensor, *, power: float = 4.0) -> Tensor:
    """``|learner - target| ** power`` of each row, (B,)."""
    return (logit_B - target_B).abs() ** power


def test_a_made_up_loss_is_one_function_and_one_line(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOSSES, "made_up", made_up)  # the line, as it would stand in `losses/catalog.py`
    term = "made_up(student.logit, teacher.logit, power=2.5) * ramp(0, 1, over=0.5) .rows(present(purchase))"
    kept = {"phases.0.terms.2": term, "phases.0.stop": {"keep": "last"}}
    taught = small.fit(tmp_path / "taught", kept)
    alone = small.fit(tmp_path / "alone", {**kept, "phases.0.terms.2": f"{term} * 0"})
    ours, theirs = taught.state(["student"]), alone.state(["student"])
    assert any(not torch.equal(value, theirs[name]) for name, value in ours.items())
    assert all(bool(torch.isfinite(value).all()) for value in ours.values())


MISTAKES = {
    "members.student.view": ["serving", "privileged"],
    "phases": [
        {
            "steps": -3,
            "terms": [
                "bce(student.logit, label)",
                "soft(student.logit, teacher.logits[7])",
                "soft(student.logit, teacher.logit, temprature=2)",
                "sfot(student.logit, teacher.logit)",
            ],
        }
    ],
}
FOUND = {
    "members.student.view": "a serving member may read serving columns only",
    "phases.0.steps": "greater than or equal to 1",
    "phases.0.terms.1": "logits",
    "phases.0.terms.2": "temperature",
    "phases.0.terms.3": "soft",
}


def test_a_job_with_every_kind_of_mistake_is_told_all_of_them(small: Small) -> None:
    with pytest.raises(SpecError) as refused:
        small.plan(MISTAKES)
    told = str(refused.value).splitlines()
    for place, words in FOUND.items():
        assert any(place in line and words in line for line in told), (place, told)


def test_two_updates_that_own_one_table_are_told_with_the_rest(small: Small) -> None:
    both = [
        {"terms": ["bce(student.logit, label)"]},
        {"terms": ["bce(teacher.logit, label)"]},
        {"terms": ["soft(student.logit, nobody.logit)"]},
    ]
    with pytest.raises(SpecError) as refused:
        small.plan({"phases": [{"steps": 3, "updates": both}]})
    told = str(refused.value)
    assert "nobody" in told and "table" in told
