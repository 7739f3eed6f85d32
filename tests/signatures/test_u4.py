"""U4, anisotropic information retrieval: a net feeds on its own early beliefs, the more the better they agree.

1. The first step sees the labels as they are; each later one ``(1 - w) label + w belief``, where w is what earlier
   steps have measured against the given labels, and the belief is 1 on as many rows as the labels are.
2. The target is fixed: no gradient flows through the belief.
3. Of labels three in ten of which are wrong, plain training learns every wrong one by heart in the end; the corrected
   one does not, and its last parameters are better. Clean labels lose next to nothing.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from recdistill.distill.labels import Corrected
from recdistill.distill.signal import Scene
from recdistill.training import audit as audit_module
from recdistill.training.memory import Meter
from tests.signatures.lab import SPLIT, Lab, splits

ROW = "understanding/air_self"
NO_CONTROLS = {"controls": {"none": "a wrong twin has none"}}


def trained_on(target: str) -> dict[str, Any]:
    return {"phases.0.terms.0": f"bce(student.logit, {target})", **NO_CONTROLS}


OWN = "corrected(reported, student.logit, most=0.9)"
SOFT = "corrected(reported, student.logit, by='probability')"
FIXED = trained_on("corrected(reported, student.logit, most=0.6, by='side', trust='always')")
BELIEF_ALONE = trained_on("corrected(reported, student.logit, most=1, trust='always')")  # from the beginning
FIXED_QUANTILE = trained_on("corrected(reported, student.logit, most=0.6, trust='always')")
BY_SIDE = trained_on("corrected(reported, student.logit, most=0.9, by='side')")
PUBLISHED = trained_on("corrected(reported, student.logit, most=1, by='side', trust='accuracy', decay=0)")


def flipped(
    folder: Path, seed: int, *, wrong: float = 0.3, rows: tuple[int, int, int] = (1500, 100, 4000), epochs: int = 80
) -> Lab:
    """Twenty numbers that decide a label, of which some share is misreported; a net wide enough to remember them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(sum(rows), 20))
    y = x @ rng.normal(size=20) + 0.8 * x[:, 0] * x[:, 1] > 0
    flips = rng.random(len(y)) < wrong
    columns = {f"x{i}": x[:, i] for i in range(20)} | {
        "y": y.astype(np.int8),
        "reported": (y ^ flips).astype(np.int8),
        "part": splits(rows),
    }
    spec = {
        "split": SPLIT,
        "serving": {f"x{i}": "numeric" for i in range(20)},
        "post_event": {"y": "binary", "reported": "binary"},
    }
    overrides = {
        "label": "y",
        "members.student.net": {"mlp": [128, 128]},
        "phases.0.epochs": epochs,
        "phases.0.stop.every": 10000,
        "train": {"batch": 100, "dense": {"adam": {"lr": 0.001}}},
    }
    return Lab(folder / str(seed), ROW, columns, spec, overrides)


# 1: what is taught


def brief(folder: Path) -> Lab:
    """A few steps on batches of a hundred rows."""
    lab = flipped(folder, 0, rows=(400, 50, 50), epochs=3)
    lab.raw["train"]["dense"] = {"adam": {"lr": 0.01}}
    return lab


Taught = list[tuple[Tensor, Tensor, Tensor]]  # of each step the given labels, the logits and the targets, (B,)


def taught(lab: Lab, overrides: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> Taught:
    found: Taught = []
    value = Corrected.value

    def listening(signal: Corrected, scene: Scene) -> Tensor:
        target_B = value(signal, scene)
        found.append((scene.batch.labels["reported"], signal.signal.value(scene).detach(), target_B.detach()))
        return target_B

    with monkeypatch.context() as patch:
        patch.setattr(Corrected, "value", listening)
        lab.fit(overrides)
    return [each for each in found if len(each[0]) > 2]


def check_targets_follow_measured_agreement(steps: Taught) -> None:
    """An independent count: agreement and threshold are averages over earlier steps, the last one a tenth."""
    agreement, threshold, entered = 0.0, 0.0, 0.0
    assert len(steps) > 8
    for label_B, logit_B, target_B in steps:
        label, logit = label_B.double().numpy(), logit_B.double().numpy()
        weight = 0.9 * agreement / entered if entered else 0.0
        belief = logit > threshold / entered if entered else np.zeros(len(label))
        expected = (1 - weight) * label + weight * belief
        assert np.allclose(target_B.numpy(), expected, atol=1e-5)
        seen = max(0.0, 2 * roc_auc_score(label, logit) - 1), np.quantile(logit, 1 - label.mean())
        agreement, threshold = (0.9 * old + 0.1 * new for old, new in zip((agreement, threshold), seen, strict=True))
        entered = 0.9 * entered + 0.1
    assert 0.05 < weight < 0.9, "nothing was measured"


def check_first_step_is_plain(lab: Lab, overrides: Mapping[str, Any]) -> None:
    (first,), _ = lab.audit(overrides)
    (plain,), _ = lab.audit(arm="plain")
    for name, gradient in plain.dense.items():
        assert torch.equal(gradient, first.dense[name]), name


def test_targets_follow_measured_agreement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = brief(tmp_path)
    check_targets_follow_measured_agreement(taught(lab, {}, monkeypatch))
    for wrong in (FIXED_QUANTILE, BY_SIDE, PUBLISHED, trained_on(SOFT)):
        with pytest.raises(AssertionError):
            check_targets_follow_measured_agreement(taught(lab, wrong, monkeypatch))

    def with_clean_labels(signal: Corrected, scene: Scene) -> Tensor:
        return torch.stack([scene.batch.labels["y"], signal.signal.value(scene)], 1)

    monkeypatch.setattr(Corrected, "noted", with_clean_labels)
    with pytest.raises(AssertionError):
        check_targets_follow_measured_agreement(taught(lab, {}, monkeypatch))


def test_the_first_step_is_plain(tmp_path: Path) -> None:
    lab = brief(tmp_path)
    check_first_step_is_plain(lab, {})
    with pytest.raises(AssertionError):
        check_first_step_is_plain(lab, FIXED)


# 2: the target is fixed


def check_target_is_fixed(lab: Lab, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient on the last bias is the mean of sigmoid(logit) - target, nothing else."""

    def agreed(signal: Corrected, row_id_N: Tensor) -> Meter:
        meter = Meter(signal.decay)
        meter.total_M, meter.entered_M = torch.full_like(meter.total_M, 0.8), torch.ones_like(meter.entered_M)
        return meter

    with monkeypatch.context() as patch:
        patch.setattr(audit_module, "memory_for", agreed)
        (found,), _ = lab.audit(trained_on(target))
    logit_B = lab.outputs()["student"].logits_BK[:, 0]
    label_B = torch.tensor(lab.columns["reported"][:100], dtype=torch.float32)
    target_B = (1 - 0.9 * 0.8) * label_B + 0.9 * 0.8 * torch.sigmoid(logit_B)
    expected = (torch.sigmoid(logit_B) - target_B).mean().reshape(1)
    torch.testing.assert_close(found.dense["student.net.out.bias"], expected, rtol=1e-4, atol=1e-7)


def test_the_target_is_fixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = brief(tmp_path)
    check_target_is_fixed(lab, SOFT, monkeypatch)
    with pytest.raises(AssertionError):
        check_target_is_fixed(lab, f"live({SOFT})", monkeypatch)


def test_the_control_takes_beliefs_from_other_rows_and_labels_from_their_own(tmp_path: Path) -> None:
    lab = brief(tmp_path)
    plain, shuffled = (lab.plan(arm=arm)[1] for arm in ("plain", "shuffled_signal"))
    assert list(plain.terms.values()) == ["bce(student.logit, reported)"]
    assert list(shuffled.terms.values()) == [
        "bce(student.logit, corrected(reported, shuffled(student.logit), most=0.9))"
    ]


# 3: what it is good for


def ends(labs: list[Lab], overrides: Mapping[str, Any] | None = None, arm: str = "main") -> tuple[float, float]:
    """Accuracy of the last parameters on clean test labels, and the share of wrong labels learned by heart."""
    found = []
    for seed, lab in enumerate(labs):
        done = lab.fit(overrides, seed=seed, arm=arm)
        train, test = (lab.columns["part"] == part for part in (0, 2))
        right = (done.logits("student") > 0) == (lab.columns["y"][test] == 1)
        given = lab.columns["reported"][train]
        wrong = given != lab.columns["y"][train]
        answers = lab.answers(done, "train")["student"].logits_BK[:, 0].numpy() > 0
        learned = (answers == (given == 1))[wrong].mean() if wrong.any() else 0.0
        found.append((right.mean(), learned))
    accuracy, learned = np.mean(found, 0)
    return float(accuracy), float(learned)


def check_wrong_labels_are_not_learned(accuracy: float, learned: float, plain: float) -> None:
    assert accuracy >= plain + 0.02
    assert learned < 0.85


def check_clean_labels_lose_little(accuracy: float, plain: float, most: float) -> None:
    """Accuracy falls by little, where belief alone from the beginning costs .41 (six logs of 800 rows, .37 at least).

    Over 20 logs of 1500 rows it falls by .0095 (sd .0054, from .002 to .019), so that the handbook's .01 holds for the
    mean, and of the three below with .006, but not for every log; over 20 logs of 800 rows by .014 (sd .009, .034 at
    most).
    """
    assert accuracy > plain - most


def test_wrong_labels_are_not_learned(tmp_path: Path) -> None:
    labs = [flipped(tmp_path, 0, rows=(800, 100, 4000))]
    plain = ends(labs, arm="plain")
    assert plain[1] > 0.95
    check_wrong_labels_are_not_learned(*ends(labs), plain[0])
    with pytest.raises(AssertionError):
        check_wrong_labels_are_not_learned(*ends(labs, FIXED), plain[0])


@pytest.mark.signature
def test_wrong_labels_are_not_learned_over_seeds(tmp_path: Path) -> None:
    labs = [flipped(tmp_path, seed) for seed in range(3)]
    plain = ends(labs, arm="plain")
    assert plain[1] > 0.95
    for right in ({}, PUBLISHED):
        check_wrong_labels_are_not_learned(*ends(labs, right), plain[0])
    for wrong in (ends(labs, FIXED), ends(labs, arm="shuffled_signal")):
        with pytest.raises(AssertionError):
            check_wrong_labels_are_not_learned(*wrong, plain[0])


def test_clean_labels_lose_little(tmp_path: Path) -> None:
    labs = [flipped(tmp_path, 0, wrong=0.0, rows=(800, 100, 4000))]
    plain, _ = ends(labs, arm="plain")
    check_clean_labels_lose_little(ends(labs)[0], plain, 0.04)
    with pytest.raises(AssertionError):
        check_clean_labels_lose_little(ends(labs, BELIEF_ALONE)[0], plain, 0.04)


@pytest.mark.signature
def test_clean_labels_lose_little_over_seeds(tmp_path: Path) -> None:
    labs = [flipped(tmp_path, seed, wrong=0.0) for seed in range(3)]
    plain, _ = ends(labs, arm="plain")
    check_clean_labels_lose_little(ends(labs)[0], plain, 0.01)
    with pytest.raises(AssertionError):
        check_clean_labels_lose_little(ends(labs, BELIEF_ALONE)[0], plain, 0.01)
