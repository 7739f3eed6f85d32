"""What happens in the course of a training: who has which parameters before and after every step, at which rates."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recdistill.data.batch import Batch
from recdistill.distill.schedule import Now
from recdistill.training.audit import Audit
from recdistill.training.cast import Cast
from recdistill.training.engine import Engine
from recdistill.training.fit import fit
from recdistill.training.reading import Data, Training
from recdistill.training.sharding import process_group
from tests.signatures.lab import Lab, Outcome

State = dict[str, np.ndarray]


@dataclass(frozen=True)
class Step:
    """One step of a training.

    Attributes:
        phase: number of the phase; every repetition counts.
        number: steps of the phase before it.
        rate: the factor of the learning rates of dense parameters.
        table_rate: the same of tables.
        weights: of the terms that took part, by their words.
        before: parameters by member before the step, names without the member.
        after: the same behind it, before any follower has followed.
    """

    phase: int
    number: int
    rate: float
    table_rate: float
    weights: dict[str, float]
    before: dict[str, State]
    after: dict[str, State]


@contextmanager
def stepping(around: Callable[..., Any]) -> Iterator[None]:
    """Within it every step is taken by ``around(step, engine, phase, batches, now, movers)``."""
    original = Engine.step

    def step(engine: Engine, *args: Any) -> Any:
        return around(lambda *given: original(engine, *(given or args)), engine, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "step", step)
        yield


def traced(lab: Lab, overrides: Mapping[str, Any] | None = None, *, seed: int = 0) -> tuple[list[Step], Outcome]:
    """All steps of a training."""
    steps: list[Step] = []

    def around(step: Callable[[], Any], engine: Engine, phase: Any, _: Any, now: Now, movers: Any) -> Any:
        before = states(engine.cast)
        found = step()
        groups = (movers[0][0].param_groups[0], engine.cast.tables.model.fused_optimizer.param_groups[0])
        weights = {term.words: term.weight(now) for term in phase.terms if term.words in found}
        number = steps[-1].phase + (now.step == 0) if steps else 0
        rates = [group["lr"] / group.get("initial_lr", group["lr"]) for group in groups]
        steps.append(Step(number, now.step, *rates, weights, before, states(engine.cast)))
        return found

    with stepping(around):
        outcome = lab.fit(overrides, seed=seed)
    return steps, outcome


def states(cast: Cast) -> dict[str, State]:
    """The parameters of every member; names do not tell whose they are, so that members can be compared."""
    found = {}
    for name in cast.heads:
        state = cast.state([name])
        bare = (key.replace(f"tables.{name}.", "tables.", 1).removeprefix(f"{name}.") for key in state)
        found[name] = {key: value.numpy(force=True).copy() for key, value in zip(bare, state.values(), strict=True)}
    return found


def carried(end: Mapping[str, Any], start: Mapping[str, Any]) -> list[str]:
    """The tensors some number of which has stayed as it was, the rows aside that are always zero."""
    stayed = {name: (value == start[name]) & (value != 0) for name, value in end.items()}
    return [name for name, stays in stayed.items() if stays.any()]


def interrupted(lab: Lab, overrides: Mapping[str, Any], *, after: int, seed: int = 0) -> Outcome:
    """A training that is stopped after so many steps and goes on from its last checkpoint."""
    plan, job, log, shuffle = lab.plan(overrides)
    lab.count += 1
    folder, taken = lab.folder / f"fit_{lab.count}", [0]

    def around(step: Callable[[], Any], *_: Any) -> Any:
        taken[0] += 1
        if taken[0] == after:
            raise KeyboardInterrupt
        return step()

    with process_group():
        training = Training(plan, job.train, Data.of(log), seed, shuffle)
        with stepping(around), pytest.raises(KeyboardInterrupt):
            fit(training, folder)
        return Outcome(folder, fit(training, folder))


@contextmanager
def steps_of(*phases: int, start: int = 0) -> Iterator[Callable[[], bool]]:
    """Within it, whether a step of some phases, from a number on, is being taken; evaluations do not count."""
    begun, inside = [-1], [False]

    def around(step: Callable[[], Any], _: Engine, *given: Any) -> Any:
        begun[0] += given[2].step == 0
        inside[0] = begun[0] in phases and given[2].step >= start
        found = step()
        inside[0] = False
        return found

    with stepping(around):
        yield lambda: inside[0]


def without_labels(*phases: int) -> Any:
    """Within it nobody knows a label in some phases: rows come with null labels."""
    seen = [-1]

    def around(step: Callable[..., Any], _: Engine, phase: Any, batches: Any, now: Now, movers: Any) -> Any:
        seen[0] += now.step == 0
        if seen[0] in phases:
            batches = {name: blank(batch) for name, batch in batches.items()}
        return step(phase, batches, now, movers)

    return stepping(around)


def blank(batch: Batch) -> Batch:
    """The batch with all labels null."""
    return replace(batch, labels={name: torch.full_like(label, torch.nan) for name, label in batch.labels.items()})


def slopes(audits: list[Audit], cast: Cast, term: str, member: str = "student") -> Tensor:
    """The gradient of a term on a linear member's logit in each row, (B,), read off that on its looked-up vectors."""
    found = next(a for a in audits if a.words.startswith(term))
    assert member in found.tables, "the term does not teach the member"
    leaf_BW = found.tables[member]
    weight_W = dict(cast.heads[member].named_parameters())["net.out.weight"].detach()[0, : leaf_BW.shape[1]]
    return leaf_BW @ weight_W / weight_W.square().sum()
