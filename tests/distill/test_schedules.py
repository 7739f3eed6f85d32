"""Weights that change: cycles, late and steep ones, and those that follow what validation has seen."""

import math
from pathlib import Path
from typing import Any

import pytest

from recdistill.distill.schedule import Metric, Now, Schedule, behind, cycle, gaussian, stalled
from recdistill.distill.term import Term
from recdistill.errors import TrainingError
from recdistill.training import watch
from recdistill.training.engine import Engine
from tests.conftest import Small
from tests.training.bench import BCE, OTHER, STUDENT, Bench, described, problems

AUC, LOSS = Metric("student", "auc"), Metric("student", "logloss")
TEACHER = Metric("teacher", "auc")


def over(schedule: Schedule, steps: int, planned: int = 100) -> list[float]:
    return [schedule.weight(Now(step, planned)) for step in range(steps)]


def after(schedule: Schedule, *values: float, metric: Metric = AUC) -> list[float]:
    """The weight before any evaluation, and after each of some."""
    seen = tuple({metric.key: value} for value in values)
    return [schedule.weight(Now(seen=seen[:k])) for k in range(len(seen) + 1)]


def test_a_cycle_begins_anew_and_never_quite_ends() -> None:
    once = over(cycle(1, 0, over=8), 8)
    assert once[0] == 1 and once[4] == pytest.approx(0.5) and 0 < once[7] < 0.05
    assert once == pytest.approx([(1 + math.cos(math.pi * k / 8)) / 2 for k in range(8)])
    assert over(cycle(1, 0, over=8), 40) == once * 5
    assert over(cycle(1, 0, over=0.08), 40) == pytest.approx(once * 5)
    with pytest.raises(TrainingError, match="over must be positive, found 0"):
        cycle(1, 0, over=0)


def test_cycles_that_do_not_divide_the_phase_keep_their_length() -> None:
    found = over(cycle(1, 0, over=0.3), 100, planned=100)
    assert [k for k, weight in enumerate(found) if weight == 1] == [0, 30, 60, 90]


def test_a_gaussian_is_late_and_steep() -> None:
    found = over(gaussian(0, 2, over=80, begin=10), 100)
    assert found[:11] == [0] * 11 and found[90:] == [2] * 10
    for k in range(11, 90):
        assert found[k] == pytest.approx(2 * math.exp(-5 * (1 - (k - 10) / 80) ** 2))
    assert found == sorted(found) and found[50] < 2 * 0.3  # half way, less than a third of it
    down = over(gaussian(3, 1, over=0.5), 60)
    assert down[0] == 3 and down[50:] == [1] * 10
    for wrong in ({"over": 0}, {"over": 5, "begin": -1}):
        with pytest.raises(TrainingError, match="gaussian: over must be positive and begin not negative"):
            gaussian(0, 1, **wrong)


def test_a_stalled_metric_changes_the_weight_and_a_new_best_changes_it_back() -> None:
    assert after(stalled(0, 1, AUC), 0.7, 0.72, 0.71, 0.72, 0.5) == [0, 0, 0, 1, 0, 1]  # as good as the best is enough
    losses = after(stalled(0, 1, LOSS), 0.7, 0.72, 0.71, 0.69, 0.695, metric=LOSS)
    assert losses == [0, 0, 1, 1, 0, 1]


def test_patience_and_warmup_of_a_stalled_metric() -> None:
    values = (0.7, 0.6, 0.6, 0.6, 0.8, 0.7, 0.7)
    assert after(stalled(0, 1, AUC, patience=2), *values) == [0, 0, 0, 1, 1, 0, 0, 1]
    assert after(stalled(0, 1, AUC, warmup=3), *values) == [0, 0, 0, 0, 1, 0, 1, 1]
    assert after(stalled(0, 1, AUC, patience=2, warmup=3), *values) == [0, 0, 0, 0, 0, 0, 0, 1]
    for wrong in ({"patience": 0}, {"warmup": -1}):
        with pytest.raises(TrainingError, match="stalled: patience is at least 1 and warmup at least 0"):
            stalled(0, 1, AUC, **wrong)


def pairs(schedule: Schedule, *values: tuple[float, float]) -> list[float]:
    first, second = schedule.metrics
    seen = tuple({first.key: a, second.key: b} for a, b in values)
    return [schedule.weight(Now(seen=seen[:k])) for k in range(len(seen) + 1)]


def test_whoever_is_behind_is_taught_until_it_is_ahead_by_the_margin() -> None:
    schedule = behind(0.9, 0.1, AUC, TEACHER, margin=0.01)
    assert pairs(schedule, (0.7, 0.8), (0.8, 0.8), (0.82, 0.8), (0.805, 0.8)) == [0.9, 0.9, 0.9, 0.1, 0.9]
    worse = behind(0.9, 0.1, LOSS, Metric("teacher", "logloss"))
    assert pairs(worse, (0.7, 0.6), (0.6, 0.6), (0.5, 0.6), (0.61, 0.6)) == [0.9, 0.9, 0.1, 0.1, 0.9]
    with pytest.raises(TrainingError, match="compares two metrics of one kind, found logloss and auc"):
        behind(1, 0, LOSS, TEACHER)


def test_within_a_scenario_only_its_metrics_count() -> None:
    schedule = behind(1, 0, AUC, TEACHER, scenario="2")
    assert [m.key for m in schedule.metrics] == ["student.auc@2", "teacher.auc@2"]
    ahead = {"student.auc": 0.5, "teacher.auc": 0.9, "student.auc@2": 0.9, "teacher.auc@2": 0.5}
    assert schedule.weight(Now(seen=(ahead,))) == 0
    unknown = {**ahead, "student.auc@2": math.nan}  # one class only among its rows
    assert schedule.weight(Now(seen=(unknown,))) == 1


DEVICES = "feature_specs/marketplace_devices.yaml"


def test_a_scenario_must_be_one_of_the_spec(small: Small) -> None:
    members = {"student": STUDENT, "teacher": OTHER}
    weight = "behind(1, 0, student.auc, teacher.auc, scenario='1')"
    terms = [BCE, "bce(teacher.logit, label)", f"soft(student.logit, teacher.logit) * {weight}"]
    found = problems(small, members, [{"steps": 2, "terms": terms}])
    assert len(found) == 1 and "behind" in found[0] and "the feature spec names no `scenario`" in found[0]
    assert problems(small, members, [{"steps": 2, "terms": terms}], spec=DEVICES) == []
    wrong = [{"steps": 2, "terms": [*terms[:2], "soft(student.logit, teacher.logit) * stalled(0, 1, student.acu)"]}]
    assert any("did you mean 'student.auc'?" in problem for problem in problems(small, members, wrong))


@pytest.fixture(scope="module")
def devices(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Small:
    """The small marketplace with its devices as scenarios."""
    from recdistill.data.encode import encode
    from recdistill.spec.load import load_feature_spec

    encoded = encode(load_feature_spec(Path(DEVICES)), str(small.log), tmp_path_factory.mktemp("devices") / "encoded")
    return Small(small.log, encoded, {**small.job, "spec": DEVICES})


def test_metrics_within_a_scenario_are_those_of_its_rows(devices: Small, group: None) -> None:
    import numpy as np

    from recdistill.evaluation import auc, log_loss

    weights = "behind(1, 0, student.auc, teacher.auc, scenario='1') * behind(1, 0, student.logloss, teacher.logloss"
    terms = [BCE, "bce(teacher.logit, label)", f"soft(student.logit, teacher.logit) * {weights}, scenario='3')"]
    b = Bench.of(devices, {"student": STUDENT, "teacher": OTHER}, [{"steps": 2, "terms": terms}], spec=DEVICES)
    found = watch.evaluate(b.engine, ["student", "teacher"], b.engine.valid, b.plan.phases[0].metrics)
    scores, _, labels = b.engine.score(["student"], b.engine.valid)
    scenario = b.engine.valid.scenarios()
    assert {*np.unique(scenario)} == {"0", "1", "2", "3"}
    for value, measure in (("1", auc), ("3", log_loss)):
        rows = scenario == value
        expected = measure(labels["purchase"][rows], scores["student"][rows, 0])
        assert found[f"student.{'auc' if measure is auc else 'logloss'}@{value}"] == expected
    assert "teacher.auc@1" in found and "student.auc@3" not in found


SEEN = [0.70, 0.69, 0.69, 0.72, 0.70, 0.71]  # of the student, at each evaluation; the teacher has 0.705
TERMS = [
    f"{BCE} * cycle(1, 0.5, over=5)",
    "bce(teacher.logit, label) * gaussian(0.1, 1, over=0.5)",
    "soft(student.logit, teacher.logit) * stalled(0.25, 0.5, student.auc)",
    "l2(student.hidden[-1], teacher.hidden[-1]) * behind(0.1, 0.2, student.auc, teacher.auc)",
]


def weights(
    small: Small, folder: Path, monkeypatch: pytest.MonkeyPatch, stop: int | None = None, forget: str = ""
) -> list[list[float]]:
    """The weights of all terms in every step of a training that sees given metrics, maybe stopped and continued."""
    found: list[list[float]] = []
    original, write = Engine.step, Engine._stopped

    def step(self: Engine, phase: Any, batches: Any, now: Now, optimizers: Any) -> Any:
        if len(found) == stop:
            found.append([])  # so that it is stopped once
            raise KeyboardInterrupt
        found.append([term.weight(now) for term in phase.terms])
        return original(self, phase, batches, now, optimizers)

    def evaluate(engine: Engine, *_: Any) -> dict[str, float]:
        number = (len([f for f in found if f]) - 1) // 2
        return {"student.auc": SEEN[number], "student.logloss": 0.5, "teacher.auc": 0.705, "teacher.logloss": 0.5}

    def stopped(*given: Any) -> Any:
        state = write(*given)
        if forget:
            state.progress["watch"][forget] = []
        return state

    job = described(
        small, {"student": STUDENT, "teacher": OTHER},
        [{"steps": 12, "terms": TERMS, "stop": {"every": 2, "keep": "last"}}], train={"checkpoint_every": 1},
    )  # fmt: skip
    from recdistill.distill.compile import compile_job, problems_of
    from recdistill.spec.load import parse_job
    from recdistill.training.fit import Data, Training, fit

    parsed, spec = parse_job(job, "job", check=problems_of)
    training = Training(compile_job(parsed, spec), parsed.train, Data.of(small.encoded), 0)
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", step)
        patch.setattr(Engine, "_stopped", stopped)
        patch.setattr(watch, "evaluate", evaluate)
        if stop is not None:
            with pytest.raises(KeyboardInterrupt):
                fit(training, folder)
        fit(training, folder)
    return [f for f in found if f]


def test_weights_that_follow_metrics_go_on_where_they_stood(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights(small, tmp_path / "whole", monkeypatch)
    assert [w[2] for w in whole] == [0.25] * 4 + [0.5] * 4 + [0.25] * 2 + [0.5] * 2
    assert [w[3] for w in whole] == [0.1] * 8 + [0.2] * 2 + [0.1] * 2
    assert [w[0] for w in whole] == pytest.approx(over(cycle(1, 0.5, over=5), 12))
    assert [w[1] for w in whole] == pytest.approx(over(gaussian(0.1, 1, over=0.5), 12, planned=12))
    for stop in (5, 9):
        assert weights(small, tmp_path / f"parts{stop}", monkeypatch, stop) == whole
    assert weights(small, tmp_path / "wrong", monkeypatch, 5, forget="seen") != whole


def test_every_schedule_inside_a_term_is_found(small: Small) -> None:
    chosen = "smallest(bce(teacher.logit, label), keep=stalled(0.9, 0.5, teacher.logloss))"
    terms = ["bce(teacher.logit, label)", f"({BCE} * stalled(0.5, 1, student.auc)).rows({chosen})"]
    from recdistill.distill.compile import compile_job
    from recdistill.spec.load import parse_job

    phase = {"steps": 2, "terms": terms, "lr": "stalled(1, 0.1, student.logloss)"}
    plan = compile_job(*parse_job(described(small, {"student": STUDENT, "teacher": OTHER}, [phase]), "job"))
    term: Term = plan.phases[0].terms[1]
    assert {m.key for m in term.metrics} == {"teacher.logloss", "student.auc"}
    assert {m.key for m in plan.phases[0].metrics} == {"teacher.logloss", "student.auc", "student.logloss"}
