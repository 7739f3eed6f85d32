"""E9, Efficient Distillation from an Ensemble: teachers take turns instead of being averaged.

1. What the turns teach is, on average over teachers, exactly what their mean probability would teach.
2. In one step all rows hear one teacher, and the others are not even asked; each has its share of the steps. So what
   steps teach varies more.
3. In the augmented form every row meets every teacher once in as many epochs.
4. Teachers see what the student cannot, which is what it gains; and turns are worth as much as an average.

Departure: the page has pure soft cross entropy; the job keeps a tenth of the labels, which its control is trained on.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recdistill.data.batch import Batch
from recdistill.distill.schedule import Now
from recdistill.distill.signal import Scene
from recdistill.nets.inputs import Outputs
from recdistill.training.audit import audit
from recdistill.training.fit import build_cast
from recdistill.training.reading import reader_of
from recdistill.training.sharding import process_group
from tests.signatures.lab import SPLIT, Lab, answering, splits

ROW = "ensemble/switched_teachers"
TEACHERS = ("deep", "cross", "pairs")
ALL = "deep.logit, cross.logit, pairs.logit"
NARROW = {f"members.{name}.view": ["serving"] for name in TEACHERS} | {"privileged": [], "controls": ["plain"]}


def soft(target: str) -> dict[str, Any]:
    return {"phases.1.terms.1": f"soft(student.logit, {target})"}


PER_ROW, LOGITS = soft(f"pick({ALL}, by='row')"), soft(f"mean({ALL})")


def broadband(folder: Path, seed: int, rows: tuple[int, int, int], overrides: Mapping[str, Any]) -> Lab:
    """Few known labels, and a column that tells teachers of the luck that decides them."""
    rng = np.random.default_rng(seed)
    n, part = sum(rows), splits(rows)
    x, item, quality = rng.normal(size=(n, 6)), rng.integers(20, size=n), rng.normal(size=20)
    want = x @ rng.normal(size=6) / 2 + 0.7 * x[:, 0] * x[:, 1] + quality[item]
    luck = rng.logistic(size=n)
    y = want + luck > 0.5
    known = (part > 0) | (rng.random(n) < 0.05)
    columns = {f"x{k}": x[:, k] for k in range(6)} | {
        "item": item,
        "z": want + 0.5 * luck + 0.5 * rng.normal(size=n),
        "y": [int(label) if told else None for label, told in zip(y, known, strict=True)],
        "part": part,
    }
    spec = {
        "split": SPLIT,
        "serving": {"item": "categorical"} | {f"x{k}": "numeric" for k in range(6)},
        "post_event": {"y": "binary", "z": "numeric"},
    }
    views = {f"members.{name}.view": ["item", "x0", "x1", "privileged"] for name in TEACHERS}
    own = {"label": "y", "privileged": ["z"], "members.student.dropout": 0.0, **views}
    return Lab(folder / str(seed), ROW, columns, spec, {**own, **overrides})


def small(folder: Path) -> Lab:
    return broadband(folder, 0, (400, 100, 100), {"train": {"batch": 64, "table_std": 1.0, "stop": {"keep": "last"}}})


# 1, 2: turns


def lesson(lab: Lab, overrides: Mapping[str, Any], step: int = 0) -> Tensor:
    """What the soft term teaches the looked-up vectors of the student in a step."""
    return lab.audit(overrides, step=step, phase=1)[0][1].tables["student"]


def check_turns_teach_the_mean_probability(lab: Lab, average: Mapping[str, Any]) -> None:
    alone = torch.stack([lesson(lab, soft(f"{name}.logit")) for name in TEACHERS])
    assert (alone[0] - alone[1]).abs().max() > 1e-4
    torch.testing.assert_close(alone.mean(0), lesson(lab, average), rtol=0, atol=1e-7)


def scatter(lab: Lab, overrides: Mapping[str, Any]) -> float:
    """How much what the soft term teaches the layers of the student varies over steps, each on rows of its own."""
    plan, job, log, _ = lab.plan(overrides)
    found = []
    with process_group():
        cast = build_cast(plan, job.train, log, seed=0)
        for step, batch in enumerate(reader_of(plan, log, ("train",)).in_order(16)):
            taught = audit(cast, plan.phases[1], batch, step=step)[1].dense
            found.append(torch.cat([gradient.flatten() for gradient in taught.values()]))
    return float(torch.stack(found).var(0).sum())


def check_turns_vary_more(turns: float, average: float) -> None:
    """The price of asking one teacher instead of all: 2.8 times as much, and half of the difference at least."""
    assert turns > 1.9 * average


def check_a_step_belongs_to_one_teacher(lab: Lab, overrides: Mapping[str, Any]) -> None:
    """Whatever the others say, be it NaN."""
    alone = {name: lesson(lab, soft(f"{name}.logit")) for name in TEACHERS}
    heard = set()
    for step in range(12):
        found = lesson(lab, overrides, step)
        mine = [name for name, single in alone.items() if torch.equal(single, found)]
        assert len(mine) == 1, "the rows of a step hear several teachers"

        def poisoned(name: str, out: Outputs, _: Batch, one: str = mine[0]) -> Outputs:
            spoiled = name in TEACHERS and name != one
            return out._replace(logits_BK=torch.full_like(out.logits_BK, torch.nan)) if spoiled else out

        with answering(poisoned):
            assert torch.equal(lesson(lab, overrides, step), found)
        heard |= {*mine}
    assert heard == {*TEACHERS}


def check_one_teacher_answers_in_a_step(lab: Lab, overrides: Mapping[str, Any]) -> None:
    asked: list[str] = []

    def counted(name: str, out: Outputs, rows: Batch) -> Outputs:
        if len(rows) == 64:  # not an evaluation
            asked.append(name)
        return out

    steps = {f"phases.{i}.{key}": value for i in (0, 1) for key, value in (("epochs", None), ("steps", 6))}
    with answering(counted):
        lab.fit({**overrides, **steps})
    asked = asked[asked.index("student") :]  # teachers are trained before
    assert len(asked) == 12 and asked.count("student") == 6


def check_every_teacher_has_its_share(lab: Lab, overrides: Mapping[str, Any]) -> None:
    (target,) = lab.plan(overrides)[0].phases[1].terms[1].targets
    batch, asked = lab.batch(), dict.fromkeys(TEACHERS, 0)

    class Asked(dict[str, Outputs]):
        def __missing__(self, name: str) -> Outputs:
            asked[name] += 1
            return Outputs(torch.zeros(len(batch), 1), [], torch.zeros(len(batch), 0), [])

    for step in range(1000):
        target.value(Scene(Asked(), batch, 0, Now(step)))
    assert all(abs(count / 1000 - 1 / 3) < 0.04 for count in asked.values())


def test_turns_teach_the_mean_probability(tmp_path: Path) -> None:
    lab = small(tmp_path)
    check_turns_teach_the_mean_probability(lab, lab.raw["variants"]["average"])
    with pytest.raises(AssertionError):
        check_turns_teach_the_mean_probability(lab, LOGITS)


def test_turns_vary_more_than_their_mean(tmp_path: Path) -> None:
    lab = small(tmp_path)
    average = scatter(lab, lab.raw["variants"]["average"])
    check_turns_vary_more(scatter(lab, {}), average)
    with pytest.raises(AssertionError):
        check_turns_vary_more(scatter(lab, PER_ROW), average)


ONE_A_STEP = [
    check_a_step_belongs_to_one_teacher,
    check_one_teacher_answers_in_a_step,
    check_every_teacher_has_its_share,
]


@pytest.mark.parametrize("check", ONE_A_STEP)
def test_teachers_take_turns(tmp_path: Path, check: Callable[[Lab, Mapping[str, Any]], None]) -> None:
    lab = small(tmp_path)
    check(lab, {})
    for wrong in (lab.raw["variants"]["average"], PER_ROW):
        with pytest.raises(AssertionError):
            check(lab, wrong)


def test_a_share_that_is_not_even_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        check_every_teacher_has_its_share(small(tmp_path), soft(f"pick({ALL}, weights='2 1 1')"))


# 3: augmentation


def check_every_row_meets_every_teacher(lab: Lab, overrides: Mapping[str, Any]) -> None:
    """In three epochs, and not all rows the same one at the same time."""
    (target,) = lab.plan(overrides)[0].phases[1].terms[1].targets
    batch = lab.batch()
    said = {name: torch.full((len(batch), 1), float(k)) for k, name in enumerate(TEACHERS)}
    outputs = {name: Outputs(value, [], value, []) for name, value in said.items()}
    seen = torch.stack([target.value(Scene(outputs, batch, 0, Now(7 * e, epoch=e))) for e in range(3)])
    assert torch.equal(seen.sort(0).values, torch.arange(3.0).unsqueeze(1).expand(3, len(batch)))
    assert all(len(epoch.unique()) == 3 for epoch in seen)


def test_in_the_augmented_form_every_row_meets_every_teacher(tmp_path: Path) -> None:
    lab = small(tmp_path)
    check_every_row_meets_every_teacher(lab, lab.raw["variants"]["augmentation"])
    for wrong in ({}, PER_ROW, lab.raw["variants"]["average"]):
        with pytest.raises(AssertionError):
            check_every_row_meets_every_teacher(lab, wrong)


# 4: what turns are worth


def scarce(folder: Path, seed: int) -> Lab:
    train = {
        "batch": 256,
        "table_std": 0.1,
        "tables": {"rowwise_adagrad": {"lr": 0.1}},
        "dense": {"adam": {"lr": 0.003}},
        "stop": {"every": 1000, "keep": "last"},
    }
    lab = broadband(folder, seed, (12000, 500, 20000), {"train": train})
    for phase, steps in zip(lab.raw["phases"], (100, 250), strict=True):
        del phase["epochs"]
        phase["steps"] = steps
    lab.raw["phases"][1]["lr"] = "cosine(1, 0.02, over=0.999)"
    return lab


def auc(lab: Lab, overrides: Mapping[str, Any], seed: int, arm: str = "main") -> float:
    return lab.fit(overrides, seed=seed, arm=arm).auc("student")


def check_turns_are_worth_an_average(turns: float, average: float) -> None:
    assert abs(turns - average) < 0.003


def check_the_student_gains_what_only_teachers_see(taught: float, alone: float) -> None:
    """Half of the 0.024 that is measured."""
    assert taught - alone > 0.012


def test_turns_are_worth_an_average(tmp_path: Path) -> None:
    lab = scarce(tmp_path, 0)
    turns = auc(lab, {}, 0)
    check_turns_are_worth_an_average(turns, auc(lab, lab.raw["variants"]["average"], 0))
    check_the_student_gains_what_only_teachers_see(turns, auc(lab, {}, 0, "plain"))


@pytest.mark.signature
def test_turns_are_worth_an_average_over_seeds(tmp_path: Path) -> None:
    for seed in range(4):
        lab = scarce(tmp_path, seed)
        turns, alone = auc(lab, {}, seed), auc(lab, {}, seed, "plain")
        average = auc(lab, lab.raw["variants"]["average"], seed)
        check_turns_are_worth_an_average(turns, average)
        check_turns_are_worth_an_average(auc(lab, lab.raw["variants"]["augmentation"], seed), average)
        check_the_student_gains_what_only_teachers_see(turns, alone)
        with pytest.raises(AssertionError):
            check_the_student_gains_what_only_teachers_see(auc(lab, NARROW, seed), alone)
        with pytest.raises(AssertionError):
            check_turns_are_worth_an_average(auc(lab, soft(f"shuffled(pick({ALL}, by='step'))"), seed), average)
