"""E7, EnsembleNet: heads on shared layers are pulled towards their mean, which serves.

1. Logit by logit, the pull of a head towards the mean is its own loss less K times the ensemble's: agreement is the
   head loss raised and the ensemble loss taken away.
2. The heavier the weight of agreement, below zero or above, the more alike the heads; at the job's own they are more
   alike than heads that learn from labels only, and a loss on the mean alone lets them drift apart many times as far.
   The mean is as good all the same.
3. What is exported, heads and all, is smaller than one head of full width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recdistill.distill.layout import lay_out
from recdistill.distill.schedule import Now
from recdistill.distill.signal import Scene
from recdistill.distill.term import Term
from recdistill.export.build import serving_student
from recdistill.nets.inputs import Outputs
from recdistill.training import checkpoint
from recdistill.training.fit import build_cast
from recdistill.training.reading import reader_of
from recdistill.training.sharding import process_group
from recdistill.training.value import term_value
from tests.signatures.lab import SPLIT, Lab, clicks, pairs_of_fields

ROW = "ensemble/multi_headed"
HEADS = 4
NO_CONTROLS = {"controls": {"none": "no member teaches another one"}}
ENSEMBLE = "bce(student.logit, label)"


def agreement(weight: float) -> dict[str, Any]:
    return {"phases.0.terms.1": f"soft(head[:].logit, student.logit) * {weight}"}


def fields(folder: Path, seed: int, rows: tuple[int, int, int], overrides: Mapping[str, Any]) -> Lab:
    columns, logit = pairs_of_fields(seed, rows)
    spec = {
        "split": SPLIT,
        "serving": dict.fromkeys((f"c{k}" for k in range(6)), "categorical"),
        "post_event": {"y": "binary"},
    }
    own = {"label": "y", "members.base.dropout": 0.0}
    return Lab(folder / str(seed), ROW, {**columns, "y": clicks(logit, seed)}, spec, {**own, **overrides})


def small(folder: Path) -> Lab:
    return fields(folder, 0, (400, 100, 100), {"train": {"batch": 200, "table_std": 1.0, "stop": {"keep": "last"}}})


# 1: the identity


def slopes(terms: Sequence[Term], scene: Scene, heads: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of each term, at its weight, on the logits of each head, (heads, B)."""
    found = []
    for term in terms:
        value = term_value(term, scene) * term.weight(Now(0))
        slope = torch.autograd.grad(value, heads, retain_graph=True, allow_unused=True)
        found.append(torch.stack([torch.zeros_like(h) if g is None else g for h, g in zip(heads, slope, strict=True)]))
    return found


def check_agreement_is_head_loss_less_ensemble_loss(lab: Lab, overrides: Mapping[str, Any]) -> None:
    """In float64, with the job's own terms and the net that serves, on logits drawn at random."""
    plan, job, log, _ = lab.plan({"phases.0.terms": [*lab.raw["phases"][0]["terms"], ENSEMBLE], **overrides})
    with process_group():
        net = build_cast(plan, job.train, log, seed=0).heads["student"].net
        batch = next(iter(reader_of(plan, log, ("train",)).in_order(200)))
    draw = torch.Generator().manual_seed(0)
    heads = [torch.randn(len(batch), dtype=torch.float64, generator=draw, requires_grad=True) for _ in range(HEADS)]
    said = {f"head_{k}": Outputs(head.unsqueeze(1), [], head.unsqueeze(1), []) for k, head in enumerate(heads)}
    batch.labels["y"] = batch.labels["y"].double()
    terms = plan.phases[0].terms
    found = slopes(terms, Scene({**said, "student": net(torch.stack(heads, 1))}, batch), heads)
    hard, soft, whole = sum(found[:HEADS]), sum(found[HEADS:-1]), found[-1]
    assert soft.abs().max() > 1e-4
    torch.testing.assert_close(soft, hard - HEADS * whole, rtol=0, atol=1e-10)


def test_agreement_is_head_loss_less_ensemble_loss(tmp_path: Path) -> None:
    lab = small(tmp_path)
    check_agreement_is_head_loss_less_ensemble_loss(lab, {})
    for wrong in (
        {"members.student.net": {"average": {"of": "probability"}}},
        {"phases.0.terms.1": "soft(head[:].logit, live(student.logit))"},
        {"phases.0.terms.1": "soft(head[:].logit, student.logit, temperature=2)"},
        agreement(-1),
    ):
        with pytest.raises(AssertionError):
            check_agreement_is_head_loss_less_ensemble_loss(lab, wrong)


# 2: how alike heads are


def trained(folder: Path, seed: int) -> Lab:
    """At the end rates fall, so that heads differ by what they have learned and not by their last step."""
    train = {
        "batch": 256,
        "table_std": 0.1,
        "tables": {"rowwise_adagrad": {"lr": 0.1}},
        "dense": {"adam": {"lr": 0.005}},
        "stop": {"every": 1000, "keep": "last"},
    }
    lab = fields(folder, seed, (16000, 500, 8000), {"train": train})
    (phase,) = lab.raw["phases"]
    del phase["epochs"]
    phase |= {"steps": 190, "lr": "cosine(1, 0.02, over=0.999)"}
    return lab


@dataclass(frozen=True)
class Heads:
    """How far the heads' logits lie apart on the test rows, on average, and the AUC of their mean."""

    apart: float
    auc: float


def heads(lab: Lab, overrides: Mapping[str, Any], seed: int) -> Heads:
    found = lab.fit(overrides, seed=seed)
    logits = np.array([found.logits(f"head_{k}") for k in range(HEADS)])
    assert np.abs(logits.mean(0) - found.logits("student")).max() < 1e-5
    return Heads(float(logits.std(0).mean()), found.auc("student"))


def check_heads_are_pulled_together(pushed: Heads, free: Heads, pulled: Heads) -> None:
    """At the weights -0.5, 0 and 2; the mean is as good, within 0.001 (at most 0.0009 over 20 seeds).

    Over 20 seeds pushed heads lie 1.41 times as far apart as free ones (sd 0.18, 0.90 to 1.72), pulled ones 0.64 times
    (sd 0.09, 0.33 to 0.76). So the order does not hold in every seed, as it does in the handbook's three: in one of
    the 20 (number 17) free heads lie farther apart than pushed ones.
    """
    assert pushed.apart > free.apart > pulled.apart
    assert max(abs(pushed.auc - free.auc), abs(pulled.auc - free.auc)) < 0.001


def check_the_job_pulls(free: Heads, found: Heads) -> None:
    """Over 20 seeds 0.71 times as far apart as free ones (sd 0.08, 0.48 to 0.87), the AUCs at most 0.0008 apart.

    With the wrong sign heads lie 12.5 times as far apart as free ones (sd 4.0, 5.4 to 21.0).
    """
    assert found.apart < free.apart
    assert abs(found.auc - free.auc) < 0.001


def check_heads_answer_alike(job: Sequence[Heads], found: Sequence[Heads]) -> None:
    """Less than 10 times as far apart as the job's, on average over seeds: half of what the handbook says of the wrong.

    Over 20 seeds a loss on the mean alone lets heads drift 17.5 times as far apart (sd 5.5, 6.8 to 27.9), so a single
    seed need not show it. Free heads lie 1.4 times as far apart (sd 0.2, 1.2 to 2.1).
    """
    assert np.mean([other.apart / own.apart for own, other in zip(job, found, strict=True)]) < 10


ITSELF = "soft(head[:].logit, head[:].logit)"  # each head agrees with what it says itself


def test_heads_are_pulled_together(tmp_path: Path) -> None:
    lab = trained(tmp_path, 0)
    pushed, free, pulled = (heads(lab, agreement(weight), 0) for weight in (-0.5, 0, 2))
    check_heads_are_pulled_together(pushed, free, pulled)
    check_the_job_pulls(free, heads(lab, {}, 0))
    with pytest.raises(AssertionError):
        check_the_job_pulls(free, heads(lab, agreement(-1), 0))


@pytest.mark.signature
def test_heads_are_pulled_together_over_seeds(tmp_path: Path) -> None:
    for seed in range(3):
        lab = trained(tmp_path, seed)
        pushed, free, pulled = (heads(lab, agreement(weight), seed) for weight in (-0.5, 0, 2))
        check_heads_are_pulled_together(pushed, free, pulled)
        itself = [heads(lab, {"phases.0.terms.1": f"{ITSELF} * {weight}", **NO_CONTROLS}, seed) for weight in (-0.5, 2)]
        with pytest.raises(AssertionError):
            check_heads_are_pulled_together(itself[0], free, itself[1])


@pytest.mark.signature
def test_a_loss_on_the_mean_lets_heads_drift_apart_over_seeds(tmp_path: Path) -> None:
    labs = [trained(tmp_path, seed) for seed in range(5)]
    job, free, drifted = (
        [heads(lab, overrides, seed) for seed, lab in enumerate(labs)]
        for overrides in ({}, agreement(0), labs[0].raw["variants"]["ensemble_loss"])
    )
    for own, other, wrong in zip(job, free, drifted, strict=True):
        check_the_job_pulls(other, own)
        with pytest.raises(AssertionError):
            check_the_job_pulls(other, wrong)
    check_heads_answer_alike(job, free)
    with pytest.raises(AssertionError):
        check_heads_answer_alike(job, drifted)


# 3: what is exported


def exported(lab: Lab, overrides: Mapping[str, Any]) -> tuple[int, Tensor, Tensor]:
    """Numbers in the serving module, and its logits beside those of training on the test rows."""
    found = lab.fit({**overrides, "phases.0.epochs": None, "phases.0.steps": 3})
    plan, _, log, _ = lab.plan(overrides)
    layout = lay_out(plan.members, log.spec, log.fitted.tables)
    parameters = checkpoint.read(found.folder / "checkpoints" / "final")
    student = serving_student(
        plan.student, plan.members, layout, log.spec, log.fitted, parameters, negative_keep_rate=1.0
    )
    test = lab.columns["part"] == 2
    raw = {name: torch.from_numpy(lab.columns[name][test]) for name in log.spec.serving}
    with torch.no_grad():
        logits = student.logits(raw, {}, {})
    return (
        sum(value.numel() for value in student.state_dict().values()),
        logits,
        torch.from_numpy(found.logits("student").copy()),
    )


ONE_WIDE_HEAD = {"members.head.copies": 1, "members.head.net": {"mlp": [64]}, "controls": ["plain"]}


def check_the_export_is_smaller_than_one_wide_head(lab: Lab, overrides: Mapping[str, Any]) -> None:
    size, logits, expected = exported(lab, overrides)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert size < exported(lab, ONE_WIDE_HEAD)[0]


def test_the_export_is_smaller_than_one_wide_head(tmp_path: Path) -> None:
    lab = small(tmp_path)
    check_the_export_is_smaller_than_one_wide_head(lab, {})
    own_tables = {"members.head.view": ["serving"], "members.head.dim": 8}
    for wrong in ({"members.head.net": {"mlp": [64]}}, own_tables):
        with pytest.raises(AssertionError):
            check_the_export_is_smaller_than_one_wide_head(lab, wrong)
