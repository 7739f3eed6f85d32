"""O1, codistillation: replicas on rows that have none in common agree with what the others were some steps ago.

1. What a replica learns from stands still between two visits, where it becomes what the other replica is then, and no
   gradient reaches it. Before the burn-in is over, a replica is a lone one, bit for bit.
2. No two replicas learn from the same row. Of several others the probabilities are averaged, not the logits.
3. Two processes that meet in a shared folder, step for step, end where one process with both replicas ends. Of a
   process that comes late or is killed the other one hears what there is, and goes on.
4. Two replicas agree far more than lone ones do, trained again the result changes less, and it ranks better.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recdistill.data.scores import sigmoid
from recdistill.distill.schedule import Now
from recdistill.distill.signal import Logit, walk
from recdistill.evaluation import churn
from recdistill.spec.load import dump_yaml
from tests.conftest import ROOT
from tests.signatures.lab import Lab, Outcome, same
from tests.signatures.replica import PATIENCE
from tests.signatures.traces import slopes, stepping, traced
from tests.signatures.worlds import fields

ROW = "online/codistillation"
Process = subprocess.Popen[str]
EVERY, BURN_IN = 4, 10


def terms(learner: str, target: str, *, at: float) -> list[str]:
    return [f"bce({learner}.logit, label)", f"soft({learner}.logit, {target}) * step(0, 1, at={at})"]


def both(target: str, other_target: str, *, at: float = BURN_IN) -> dict[str, Any]:
    """What the two replicas of the job learn from."""
    return {
        "phases.0.updates.0.terms": terms("student", target, at=at),
        "phases.0.updates.1.terms": terms("replica", other_target, at=at),
    }


LIVE = both("replica.logit", "student.logit")
NO_BURN_IN = both("old_replica.logit", "old_student.logit", at=0)
SAME_HALF = {"feeds.other.shard": [0, 2]}
EVERYTHING = {"phases.0.updates.0.feed": "log", "phases.0.updates.1.feed": "log"}
ALONE = {
    "phases.0.updates.0.terms": ["bce(student.logit, label)"],
    "phases.0.updates.1.terms": ["bce(replica.logit, label)"],
    "controls": ["plain"],
}


def crowd(folder: Path, seed: int, *, rows: Sequence[int], steps: int, batch: int, more: Mapping[str, Any]) -> Lab:
    overrides = {
        "members.student.net": {"mlp": [32]},
        "members.replica.net": {"mlp": [32]},
        "phases.0.epochs": None,
        "phases.0.steps": steps,
        "train": {
            "batch": batch,
            "table_std": 0.1,
            "tables": {"rowwise_adagrad": {"lr": 0.05}},
            "dense": {"adam": {"lr": 0.005}},
            "stop": {"every": steps, "keep": "last"},
        },
        **more,
    }
    return fields(seed, rows).lab(folder / str(seed), ROW, overrides)


def small(folder: Path) -> Lab:
    often = {
        **both("old_replica.logit", "old_student.logit"),
        "members.old_student.snapshot.every": EVERY,
        "members.old_replica.snapshot.every": EVERY,
    }
    return crowd(folder, 0, rows=(512, 64, 64), steps=18, batch=64, more=often)


# 1: whom a replica hears, and when


def check_target_is_the_other_replica_at_the_last_visit(lab: Lab, overrides: Mapping[str, Any]) -> None:
    plan, *_ = lab.plan(overrides)
    taught = next(t for t in plan.phases[0].terms if t.words.startswith("soft(student"))
    (target,) = {part.member for t in taught.targets for part in walk(t) if isinstance(part, Logit)}
    steps, _ = traced(lab, overrides)
    for before, after in pairwise(steps):
        if after.number % EVERY:
            assert same(before.before[target], after.before[target]), "the target moves between two visits"
        else:
            assert same(after.before[target], before.after["replica"]), "the target is not what the other one is"
    assert any(taught.words in step.weights for step in steps)


def check_a_replica_is_a_lone_one_until_burnt_in(lab: Lab, overrides: Mapping[str, Any]) -> None:
    (steps, _), (lone, _) = traced(lab, overrides), traced(lab, {**ALONE, **overrides, **ALONE})
    for step, other in zip(steps, lone, strict=True):
        equal = same(step.after["student"], other.after["student"])
        assert equal == (step.number < BURN_IN), f"step {step.number}"


def check_no_gradient_leaves_the_replica(lab: Lab, overrides: Mapping[str, Any]) -> None:
    audits, _ = lab.audit(overrides, step=BURN_IN)
    hint = next(a for a in audits if a.words.startswith("soft(student"))
    assert {name.split(".")[0] for name in hint.dense} == {"student"}, "another one is taught"
    assert {*hint.tables} == {"student"}, "the tables of another one are taught"


def test_the_target_is_the_other_replica_as_it_was_at_the_last_visit(tmp_path: Path) -> None:
    lab = small(tmp_path)
    check_target_is_the_other_replica_at_the_last_visit(lab, {})
    average = {"members.old_replica": {"ema": {"of": "replica", "decay": 0.9}}}
    for wrong in (LIVE, {"members.old_replica.snapshot.every": 1}, average):
        with pytest.raises(AssertionError):
            check_target_is_the_other_replica_at_the_last_visit(lab, wrong)


def test_a_replica_is_a_lone_one_until_it_is_burnt_in(tmp_path: Path) -> None:
    lab = small(tmp_path)
    check_a_replica_is_a_lone_one_until_burnt_in(lab, {})
    with pytest.raises(AssertionError):
        check_a_replica_is_a_lone_one_until_burnt_in(lab, NO_BURN_IN)


def test_no_gradient_leaves_the_replica(tmp_path: Path) -> None:
    lab = small(tmp_path)
    check_no_gradient_leaves_the_replica(lab, {})
    check_no_gradient_leaves_the_replica(lab, of_process(lab, "first", tmp_path))
    for target in ("live(replica.logit)", "live(old_replica.logit)"):
        leak = [*terms("student", target, at=BURN_IN), "bce(replica.logit, label)"]
        with pytest.raises(AssertionError):
            check_no_gradient_leaves_the_replica(lab, {"phases.0.updates": [{"feed": "half", "terms": leak}]})


# 2: rows and means


def check_replicas_share_no_row(lab: Lab, overrides: Mapping[str, Any]) -> None:
    seen: dict[frozenset[str], set[int]] = {}

    def around(step: Callable[[], Any], _: Any, phase: Any, batches: Mapping[str, Any], *__: Any) -> Any:
        for update in phase.updates:
            seen.setdefault(update.trained, set()).update(batches[update.feed].row_id_B.tolist())
        return step()

    with stepping(around):
        lab.fit(overrides)
    assert all(not mine & theirs for mine, theirs in combinations(seen.values(), 2)), "two replicas share rows"
    assert sum(map(len, seen.values())) == 512, "rows that nobody learns from"


def test_replicas_share_no_row(tmp_path: Path) -> None:
    lab = small(tmp_path)
    check_replicas_share_no_row(lab, {})
    check_replicas_share_no_row(lab, {**lab.raw["variants"]["three"]})
    for wrong in (SAME_HALF, EVERYTHING):
        with pytest.raises(AssertionError):
            check_replicas_share_no_row(lab, wrong)


def check_mean_is_of_probabilities(lab: Lab, overrides: Mapping[str, Any]) -> None:
    outputs = lab.outputs(overrides)
    student_B, *other_BK = (outputs[n].logits_BK[:, 0] for n in ("student", "old_replica_0", "old_replica_1"))
    assert float((other_BK[0] - other_BK[1]).abs().mean()) > 1, "both say the same, so their mean tells nothing"
    found_B = slopes(*lab.audit(overrides, step=100), "soft(student")
    expected_B = (student_B.sigmoid() - torch.stack(other_BK).sigmoid().mean(0)) / len(student_B)
    torch.testing.assert_close(found_B, expected_B, rtol=1e-3, atol=1e-6)


def test_of_several_others_the_probabilities_are_averaged(tmp_path: Path) -> None:
    lab = small(tmp_path)
    three = {
        **lab.raw["variants"]["three"],
        "members.student.net": {"mlp": []},
        "members.replica.net": {"mlp": []},
        "train.table_std": 3.0,
    }
    check_mean_is_of_probabilities(lab, three)
    of_logits = terms("student", "mean(old_replica[:].logit)", at=30)
    with pytest.raises(AssertionError):
        check_mean_is_of_probabilities(lab, {**three, "phases.0.updates.0.terms": of_logits})


# 3: processes


def of_process(lab: Lab, name: str, folder: Path) -> dict[str, Any]:
    """The variant of one process, as small as the job itself."""
    return {
        **lab.raw["variants"][name],
        "members.student.net": {"mlp": [32]},
        "members.old_replica.remote.exchange": str(folder / "exchange"),
        "members.old_replica.remote.every": EVERY,
        "phases.0.updates.0.terms": terms("student", "old_replica.logit", at=BURN_IN),
    }


@contextmanager
def replicas(number: int, *words: str) -> Iterator[list[Process]]:
    """Processes that know nothing of each other but a folder."""
    command = [sys.executable, "-m", "tests.signatures.replica", *words]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    running = [subprocess.Popen(command, cwd=ROOT, text=True, **pipes) for _ in range(number)]
    yield running
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def processes() -> Iterator[list[Process]]:
    """Two that visit the folder at the same steps."""
    with replicas(2) as running:
        yield running


def tell(process: Process, lab: Lab, overrides: Mapping[str, Any], folder: Path) -> None:
    """Let a process begin with a training."""
    job, log = lab.job(overrides)
    assert process.stdin is not None
    process.stdin.write(json.dumps([str(folder), str(log.folder), dump_yaml(job)]) + "\n")
    process.stdin.flush()


def meet(processes: Sequence[Process], lab: Lab, jobs: Sequence[Mapping[str, Any]], at: Path) -> list[Path]:
    """The folders of trainings that run at the same time."""
    folders = [at / f"process_{k}" for k in range(len(jobs))]
    for process, folder, overrides in zip(processes, folders, jobs, strict=True):
        tell(process, lab, overrides, folder)
    answers = [json.loads(process.stdout.readline()) for process in processes if process.stdout]
    assert answers == [""] * len(jobs)
    return folders


def check_processes_end_where_one_ends(one: Outcome, folders: Sequence[Path]) -> None:
    for folder, name in zip(folders, ("student", "replica"), strict=True):
        apart = Outcome(folder, one.cast)
        for split in ("valid", "test"):
            assert np.array_equal(apart.logits("student", split), one.logits(name, split)), (folder.name, split)
        expected = {"student.alone": 0.0, "old_replica.lag": 0.0}
        assert visits_of(folder) == {step: {**expected, "old_replica.step": step} for step in (4, 8, 12, 16)}


def visits_of(folder: Path) -> dict[int, dict[str, float]]:
    """What a training has found at each visit, by its step."""
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {e["step"]: e["values"] for e in events if e["kind"] == "exchange"}


@pytest.mark.slow
def test_two_processes_end_where_one_with_both_replicas_ends(tmp_path: Path, processes: list[Process]) -> None:
    lab = small(tmp_path)
    together = {"phases.0.carry": {"replica": "student"}}  # in processes of their own all begin alike
    folders = meet(processes, lab, [of_process(lab, n, tmp_path) for n in ("first", "second")], tmp_path)
    check_processes_end_where_one_ends(lab.fit(together), folders)
    for wrong in (LIVE, NO_BURN_IN, SAME_HALF):
        with pytest.raises(AssertionError):
            check_processes_end_where_one_ends(lab.fit({**together, **wrong}), folders)


def check_other_came_late_and_was_killed(found: Outcome, last: int) -> None:
    """It is missing at two visits; from then on what it has left last stands."""
    heard = {step: {"old_replica.step": last, "old_replica.lag": step - last} for step in (12, 16)}
    expected = {step: {"student.alone": 1.0} for step in (4, 8)}
    expected |= {step: {"student.alone": 0.0, **values} for step, values in heard.items()}
    assert visits_of(found.folder) == expected
    counts = json.loads((found.folder / "fit.json").read_text())["exchange"]["old_replica"]
    assert counts == {"visits": 4, "alone": 2, "stale": 1, "unusable": 0}


@pytest.mark.slow
def test_who_comes_late_or_is_killed_is_passed_over(tmp_path: Path) -> None:
    lab = small(tmp_path)
    first, second = (of_process(lab, name, tmp_path) for name in ("first", "second"))

    def around(step: Callable[[], Any], _: Any, __: Any, ___: Any, now: Now, *____: Any) -> Any:
        if now.step == 8:
            tell(process, lab, {**second, "phases.0.steps": 1_000_000}, tmp_path / "killed")
            until = time.monotonic() + PATIENCE
            while not [*tmp_path.glob("exchange/*/second/0*")]:
                assert time.monotonic() < until, "nobody came"
                time.sleep(0.01)
            process.kill()
            process.wait()
        return step()

    with replicas(1, "freely") as (process,), stepping(around):
        found = lab.fit(first)
    left = [int(path.name) for path in tmp_path.glob("exchange/*/second/0*")]
    check_other_came_late_and_was_killed(found, max(left))
    with pytest.raises(AssertionError):  # whom nobody joins
        check_other_came_late_and_was_killed(lab.fit(of_process(lab, "first", tmp_path / "elsewhere")), max(left))


# 4: what it is good for


def probabilities(found: Sequence[Outcome], member: str) -> np.ndarray:
    return np.stack([sigmoid(outcome.logits(member)) for outcome in found])


def check_replicas_agree(together: Sequence[Outcome], apart: Sequence[Outcome]) -> None:
    """Their scores differ by less than three quarters of what those of lone replicas differ by."""
    ours, theirs = (
        float(np.abs(probabilities(found, "student") - probabilities(found, "replica")).mean())
        for found in (together, apart)
    )
    assert ours < 0.76 * theirs


def check_less_changes_when_trained_again(changes: Sequence[float], alone: Sequence[float]) -> None:
    assert np.mean(changes) < 0.9 * np.mean(alone)


def check_ranks_better(areas: Sequence[float], alone: Sequence[float]) -> None:
    assert np.mean(areas) - np.mean(alone) > 0.0045


def test_replicas_agree(tmp_path: Path) -> None:
    lab = crowd(tmp_path, 0, rows=(4000, 64, 1000), steps=120, batch=128, more={})
    apart = [lab.fit(ALONE)]
    check_replicas_agree([lab.fit()], apart)
    with pytest.raises(AssertionError):
        check_replicas_agree(apart, apart)


@pytest.mark.signature
def test_agreement_churn_and_ranks_over_seeds(tmp_path: Path) -> None:
    found: dict[str, list[Outcome]] = {"main": [], "alone": [], "same half": []}
    changes: dict[str, list[float]] = {name: [] for name in found}
    for seed in range(6):
        lab = crowd(tmp_path, seed, rows=(16000, 500, 4000), steps=250, batch=256, more={})
        for name, overrides in {"main": {}, "alone": ALONE, "same half": SAME_HALF}.items():
            again = [lab.fit(overrides, seed=k) for k in (0, 1)]
            changes[name] += churn(probabilities(again, "student")).tolist()
            found[name] += again
    areas = {name: [outcome.auc("student") for outcome in each] for name, each in found.items()}
    check_replicas_agree(found["main"], found["alone"])
    check_less_changes_when_trained_again(changes["main"], changes["alone"])
    check_ranks_better(areas["main"], areas["alone"])
    for name in ("alone", "same half"):
        with pytest.raises(AssertionError):
            check_ranks_better(areas[name], areas["alone"])
    with pytest.raises(AssertionError):
        check_less_changes_when_trained_again(changes["alone"], changes["alone"])
