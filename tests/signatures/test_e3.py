"""E3, Multilingual Translation with Distillation: an expert for each scenario, heard as long as it is not left behind.

1. The weights of each scenario follow its own two metrics, down and up again.
2. Where the student is ahead, the rows of a scenario are taught exactly as without a teacher; elsewhere they are not.
3. No row hears the expert of another scenario.
4. A scenario with a twentieth of the rows, unlike the others, is learned better with its expert than without.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recdistill.data.batch import Batch
from recdistill.data.transforms.hashing import text_hash
from recdistill.distill.schedule import SCHEDULES, Metric, Now, Schedule
from recdistill.evaluation import auc
from recdistill.nets.inputs import Outputs
from tests.signatures.lab import SPLIT, Lab, answering, splits

ROW = "ensemble/multi_scenario"
SCENARIOS = range(4)
SMALL = 3


def markets(folder: Path, seed: int, rows: tuple[int, int, int], overrides: Mapping[str, Any]) -> Lab:
    """Four scenarios, one of them with a twentieth of the rows, which likes what the others do not."""
    rng = np.random.default_rng(seed)
    n = sum(rows)
    scenario = rng.choice(4, size=n, p=[0.4, 0.35, 0.2, 0.05])
    x, item, quality = rng.normal(size=(n, 4)), rng.integers(30, size=n), rng.normal(size=30)
    w = rng.normal(size=4) / 2
    z = quality[item] + np.where(scenario == SMALL, -1.5, 1.5) * (x @ w + 0.5 * x[:, 0] * x[:, 1])
    columns = {f"x{k}": x[:, k] for k in range(4)} | {
        "item": item,
        "scenario": scenario,
        "y": (rng.random(n) < 1 / (1 + np.exp(-z))).astype(np.int8),
        "part": splits(rows),
    }
    spec = {
        "split": SPLIT,
        "scenario": "scenario",
        "serving": {"item": "categorical", "scenario": "categorical"} | {f"x{k}": "numeric" for k in range(4)},
        "post_event": {"y": "binary"},
    }
    plain = {"label": "y", "members.student.dropout": 0.0, "members.expert.dropout": 0.0}
    return Lab(folder / str(seed), ROW, columns, spec, {**plain, **overrides})


def small(folder: Path) -> Lab:
    return markets(folder, 0, (400, 100, 100), {"train": {"batch": 200, "table_std": 1.0}})


# 1: weights


def seen(*ahead: float) -> dict[str, float]:
    """An evaluation that finds the student ahead by so much in each scenario."""
    experts = (0.80, 0.75, 0.70, 0.65)
    return {f"expert_{k}.auc@{k}": experts[k] for k in SCENARIOS} | {
        f"student.auc@{k}": experts[k] + lead for k, lead in enumerate(ahead)
    }


HISTORY = [seen(-0.1, -0.1, 0.1, 0.001), seen(0.003, -0.1, 0.1, 0.003), seen(0.001, 0.002001, 0.1, -0.2)]
HEARD = [(1, 1, 1, 1), (1, 1, 0, 1), (0, 1, 0, 0), (1, 0, 0, 1)]


def check_weights_follow_both_metrics(lab: Lab, overrides: Mapping[str, Any]) -> None:
    terms = lab.plan(overrides)[0].phases[1].terms
    for k, expected in enumerate(HEARD):
        now = Now(seen=tuple(HISTORY[:k]))
        assert [term.weight(now) for term in terms[:4]] == [0.1 if heard else 1 for heard in expected]
        assert [term.weight(now) for term in terms[4:]] == [0.9 if heard else 0 for heard in expected]


def one_way(
    weight: float, caught_up: float, learner: Metric, teacher: Metric, *, margin: float, scenario: str
) -> Schedule:
    """Once the student is ahead, its expert is never heard again."""
    right = both_ways(weight, caught_up, learner, teacher, margin=margin, scenario=scenario)

    def value(now: Now) -> float:
        heard = [right.weight(Now(seen=now.seen[: k + 1])) for k in range(len(now.seen))]
        return caught_up if caught_up in heard else weight

    return Schedule(value, right.words, right.metrics)


both_ways = SCHEDULES["behind"]


def of_all_rows(
    weight: float, caught_up: float, learner: Metric, teacher: Metric, *, margin: float, scenario: str
) -> Schedule:
    """All scenarios go by the metrics of the first one."""
    return both_ways(weight, caught_up, learner, Metric("expert_0", "auc"), margin=margin, scenario="0")


def test_weights_follow_both_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = small(tmp_path)
    check_weights_follow_both_metrics(lab, {})
    for wrong in (one_way, of_all_rows):
        monkeypatch.setitem(SCHEDULES, "behind", wrong)
        with pytest.raises(AssertionError):
            check_weights_follow_both_metrics(lab, {})


# 2, 3: who is taught what


def lesson(
    lab: Lab, overrides: Mapping[str, Any], history: Sequence[Mapping[str, float]] = (), *, arm: str = "main"
) -> Tensor:
    """What all terms together teach the looked-up vectors of each row of the student."""
    audits, _ = lab.audit(overrides, seen=history, phase=1 if arm == "main" else 0, arm=arm)
    return torch.stack([a.tables["student"] for a in audits if "student" in a.tables]).sum(0)


def rows_of(lab: Lab, *scenarios: int) -> Tensor:
    return torch.from_numpy(np.isin(lab.columns["scenario"][:200], scenarios))


def check_where_the_student_is_ahead_it_learns_from_labels_alone(lab: Lab, overrides: Mapping[str, Any]) -> None:
    plain, main = lesson(lab, {}, arm="plain"), lesson(lab, overrides, [HISTORY[1]])
    ahead, behind = rows_of(lab, 0, 2, 3), rows_of(lab, 1)
    torch.testing.assert_close(main[ahead], plain[ahead], rtol=0, atol=1e-7)
    assert not torch.allclose(main[behind], plain[behind], rtol=0, atol=1e-5)
    everywhere = lesson(lab, overrides, [seen(*[0.1] * 4)])
    torch.testing.assert_close(everywhere, plain, rtol=0, atol=1e-7)


def check_no_row_hears_another_expert(lab: Lab, overrides: Mapping[str, Any]) -> None:
    hashes = torch.tensor([text_hash(str(k)) for k in SCENARIOS])

    def poisoned(name: str, out: Outputs, rows: Batch) -> Outputs:
        if not name.startswith("expert"):
            return out
        own_B1 = (rows.scenarios() == hashes[int(name[-1])]).unsqueeze(1)
        return out._replace(logits_BK=torch.where(own_B1, out.logits_BK, torch.nan))

    alone = lesson(lab, overrides)
    with answering(poisoned):
        assert torch.equal(lesson(lab, overrides), alone)


def mixed(target: str) -> dict[str, Any]:
    soft = f"soft(student.logit, {target}, over='batch') * behind(0.9, 0, student.auc, expert[:].auc, margin=0.002, "
    return {"phases.1.terms.1": soft + "scenario=each('0 1 2 3')).rows(equals(scenario, each('0 1 2 3')))"}


def test_where_the_student_is_ahead_it_learns_from_labels_alone(tmp_path: Path) -> None:
    lab = small(tmp_path)
    check_where_the_student_is_ahead_it_learns_from_labels_alone(lab, {})
    fixed = lab.raw["variants"]["fixed"]
    by_scenario = {k: v.replace("over='batch'", "over='selected'") for k, v in mixed("expert[0].logit").items()}
    by_scenario |= {"phases.1.terms.0": lab.raw["phases"][1]["terms"][0].replace(", over='batch'", "")}
    for wrong in (fixed, by_scenario):
        with pytest.raises(AssertionError):
            check_where_the_student_is_ahead_it_learns_from_labels_alone(lab, wrong)


def test_no_row_hears_another_expert(tmp_path: Path) -> None:
    lab = small(tmp_path)
    check_no_row_hears_another_expert(lab, {})
    check_no_row_hears_another_expert(lab, lab.raw["variants"]["fixed"])
    swapped = "route(scenario, expert[:].logit, values='0 1 3 2')"
    for wrong in ("mean(expert[:].logit)", "expert[0].logit", swapped):
        with pytest.raises(AssertionError):
            check_no_row_hears_another_expert(lab, mixed(wrong))


# 4: what it is good for


def trade(folder: Path, seed: int) -> Lab:
    train = {
        "batch": 256,
        "table_std": 0.1,
        "tables": {"rowwise_adagrad": {"lr": 0.1}},
        "dense": {"adam": {"lr": 0.003}},
        "stop": {"every": 25, "keep": "last"},
    }
    lab = markets(folder, seed, (20000, 3000, 40000), {"train": train, "members.student.net": {"mlp": [32]}})
    for phase, steps in zip(lab.raw["phases"], (200, 150), strict=True):
        del phase["epochs"]
        phase["steps"] = steps
    return lab


def gain(lab: Lab, overrides: Mapping[str, Any], seed: int) -> float:
    """The student's AUC on the test rows of the small scenario, less that of the student alone."""
    test = lab.columns["part"] == 2
    rows = lab.columns["scenario"][test] == SMALL
    label = lab.columns["y"][test][rows].astype(np.float32)
    taught, alone = lab.fit(overrides, seed=seed), lab.fit(seed=seed, arm="plain")
    return auc(label, taught.logits("student")[rows]) - auc(label, alone.logits("student")[rows])


def check_the_small_scenario_gains(gains: Sequence[float]) -> None:
    assert sum(gain >= 0 for gain in gains) >= 0.8 * len(gains)


def test_the_small_scenario_gains(tmp_path: Path) -> None:
    check_the_small_scenario_gains([gain(trade(tmp_path, 0), {}, 0)])


@pytest.mark.signature
def test_the_small_scenario_gains_over_seeds(tmp_path: Path) -> None:
    labs = [trade(tmp_path, seed) for seed in range(5)]
    check_the_small_scenario_gains([gain(lab, {}, seed) for seed, lab in enumerate(labs)])
    for wrong in ("mean(expert[:].logit)", "shuffled(route(scenario, expert[:].logit, values='0 1 2 3'))"):
        with pytest.raises(AssertionError):
            check_the_small_scenario_gains([gain(lab, mixed(wrong), seed) for seed, lab in enumerate(labs)])
