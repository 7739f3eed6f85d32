"""A job on the small marketplace, written in a few words, for tests of the engine."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recdistill.data.batch import Batch
from recdistill.distill.compile import Plan, compile_job, problems_of
from recdistill.distill.member import Phase
from recdistill.distill.schedule import Now
from recdistill.spec.job import Job
from recdistill.spec.load import assign, parse_job
from recdistill.training.engine import Engine
from recdistill.training.fit import engine_of, fit
from recdistill.training.optimizers import dense_optimizers
from recdistill.training.reading import Data, Logs, Training
from tests.conftest import Small

STUDENT: dict[str, Any] = {"net": {"mlp": [8]}, "dim": 4, "serve": True}
OTHER: dict[str, Any] = {"net": {"mlp": [8]}, "dim": 4}
BCE = "bce(student.logit, label)"
SMOOTH = {"tables": {"sgd": {"lr": 0.5}}, "dense": {"sgd": {"lr": 0.1}}, "batch": 256, "table_std": 0.1}
LAST = {"stop": {"every": 1000, "keep": "last"}}


def described(small: Small, members: Mapping[str, Any], phases: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    train = {**SMOOTH, **more.pop("train", {})}
    return {
        "spec": "feature_specs/marketplace.yaml", "log": str(small.log), "label": "purchase", "members": dict(members),
        "phases": phases, "train": train, "controls": {"none": "nothing to compare with here"}, "seeds": 1, **more,
    }  # fmt: skip


def problems(small: Small, members: Mapping[str, Any], phases: list[dict[str, Any]], **more: Any) -> list[str]:
    """What is wrong with a job, all of it."""
    return problems_of_job(described(small, members, phases, **more))


def problems_of_job(job: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> list[str]:
    """What is wrong with a job after some changes, all of it."""
    from recdistill.errors import SpecError

    try:
        parse_job(assign(dict(job), changes or {}, "job"), "job", check=problems_of)
    except SpecError as error:
        return list(error.problems)
    return []


@dataclass
class Bench:
    """A job ready to be trained step by step."""

    small: Small
    job: Job
    plan: Plan
    engine: Engine

    @classmethod
    def of(
        cls, small: Small, members: Mapping[str, Any], phases: list[dict[str, Any]], *, logs: Any = None, **more: Any
    ) -> "Bench":
        job, spec = parse_job(described(small, members, phases, **more), "job", check=problems_of)
        plan = compile_job(job, spec)
        training = Training(plan, job.train, Data.of(small.encoded), 0)
        logs = Logs(small.encoded, logs or {})
        return cls(small, job, plan, engine_of(training, logs, ("train",), Path("/nowhere"), lambda _: None))

    @property
    def cast(self) -> Any:
        return self.engine.cast

    def batch(self, rows: int = 256) -> Batch:
        return next(iter(self.engine.train.in_order(rows)))

    def optimizers(self, phase: Phase) -> list[list[torch.optim.Optimizer]]:
        return [dense_optimizers(u.parts, self.cast, self.engine.settings.dense) for u in phase.updates]

    def step(self, phase: int = 0, *, at: Now | None = None, batch: Batch | None = None) -> dict[str, Tensor]:
        """One step of a phase on a batch, with fresh optimizers."""
        chosen = self.plan.phases[phase]
        batches = {update.feed: batch or self.batch() for update in chosen.updates}
        self.engine._remember(chosen)
        return self.engine.step(chosen, batches, at or Now(), self.optimizers(chosen))

    def state(self, member: str) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.cast.state([member]).items()}

    def fit(self, folder: Path) -> Any:
        return fit(Training(self.plan, self.job.train, Data.of(self.small.encoded), 0), folder)


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether parameters are equal bit for bit, names of members and banks aside."""
    return all(torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))


def distance(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(first.values(), second.values(), strict=True))
