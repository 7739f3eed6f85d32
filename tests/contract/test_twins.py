"""Guards are guarded: each alarm rings for a deliberately broken twin of what it watches, and is silent without it.

The other guards have their twins beside them; `tests/README.md` says where.
"""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor, nn

from recdistill.distill.combine import live
from recdistill.distill.schedule import Now
from recdistill.distill.signal import Scene, flows
from recdistill.distill.term import Term
from recdistill.nets.catalog import Head
from recdistill.spec.load import assign
from recdistill.training.engine import Engine
from tests.conftest import Small
from tests.contract import test_contract as contract_guards
from tests.contract.jobs import JOBS, Contract
from tests.training import test_engine as engine_guards


@pytest.fixture(scope="module")
def contract(tmp_path_factory: pytest.TempPathFactory) -> Contract:
    """A job with a teacher that reads privileged columns, and with weights that change."""
    (path,) = (path for path in JOBS if path.stem == "privileged_features")
    return Contract.of(path, tmp_path_factory.mktemp("contract"))


def undetached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets let gradients through, whatever the term says."""
    losses = Term.losses

    def broken(self: Term, scene: Scene) -> tuple[Tensor, Tensor]:
        return losses(replace(self, targets=tuple(t if flows(t) else live(t) for t in self.targets)), scene)

    monkeypatch.setattr(Term, "losses", broken)


def always_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is ever put into evaluation mode."""
    monkeypatch.setattr(Head, "train", lambda self, mode=True: nn.Module.train(self, True))


def off_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of a training that goes on are those of the step before."""
    go_on = Engine._go_on
    late: list[bool] = []
    monkeypatch.setattr(Engine, "_go_on", lambda *given: (late.append(True), go_on(*given))[1])
    monkeypatch.setattr(
        "recdistill.training.engine.Now",
        lambda step, planned, seen, epoch: Now(max(step - len(late[:1]), 0), planned, seen, epoch),
    )


def test_a_target_that_is_not_detached_is_found(contract: Contract, monkeypatch: pytest.MonkeyPatch) -> None:
    contract_guards.test_a_term_teaches_its_learner_and_nobody_else(contract)
    undetached(monkeypatch)
    with pytest.raises(AssertionError, match=r"soft\(student.logit, teacher.logit\)"):
        contract_guards.test_a_term_teaches_its_learner_and_nobody_else(contract)


def test_a_teacher_in_training_mode_is_found(small: Small, group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = engine_guards.test_a_frozen_teacher_answers_in_evaluation_mode_and_a_trained_one_does_not
    guard(small, group)
    always_training(monkeypatch)
    with pytest.raises(AssertionError):
        guard(small, group)


@pytest.mark.parametrize("broken", [False, True])
def test_a_resumed_schedule_that_is_off_by_one_is_found(
    contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    ramp = {"phases.0.terms.0": "bce(student.logit, label) * ramp(0, 1, over=0.9)"}
    ramped = replace(contract, raw=dict(assign(contract.raw, ramp, "twin")))
    ramped.fit(tmp_path / "whole")
    if broken:
        off_by_one(monkeypatch)
    with pytest.raises(AssertionError) if broken else nullcontext():
        contract_guards.test_a_stopped_training_goes_on_bit_for_bit(ramped, tmp_path / "whole", tmp_path, monkeypatch)
