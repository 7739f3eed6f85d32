"""P2b, co-teaching: two nets choose for each other the rows of small loss, where many labels are wrong.

1. The student is taught on exactly those rows whose loss is smallest for its peer, floor(R n) of the n rows of each
   class, and what chooses is not taught; as long as R is 1, both train on all rows. Their roles are the same.
2. Of labels two in five of which are wrong, the chosen ones are far purer, and the student is far better than on all of
   them; better, too, than where each net chooses for itself. Of labels that are drawn, where a surprising one need not
   be wrong, less is gained; chosen within each class, the rows keep the rate of what is reported.
3. Controls: plain trains on all rows, the shuffled signal lets the peer choose without looking at the row.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recdistill.data.scores import sigmoid
from recdistill.distill import selector
from recdistill.losses.supervised import bce
from recdistill.training.audit import Audit
from tests.signatures.lab import SPLIT, Lab, Outcome, clicks, pairs_of_fields, same, splits

ROW = "applications/co_teaching"
FLIPPED = 0.4
DROP = f"drop=ramp(0, {FLIPPED}, over=0.5)"


def chosen_by(
    peer: str, student: str, drop: str = DROP, within: str = ", within=reported", option: str = ""
) -> list[str]:
    """The terms of a student and a peer, for each of whom a net chooses."""
    pairs = (("student", student), ("peer", peer))
    return [
        f"bce({net}.logit, reported{option}).rows(smallest(bce({by}.logit, reported), {drop}{within}))"
        for net, by in pairs
    ]


CROSSED = {"phases.0.terms": chosen_by("student", "peer")}
BY_ITSELF = {"phases.0.terms": chosen_by("peer", "student"), "controls": ["plain"]}
ONE_WAY = {"phases.0.terms": chosen_by("peer", "peer")}
OVER_THE_BATCH = {"phases.0.terms": chosen_by("student", "peer", option=", over='batch'")}
FROM_THE_START = {"phases.0.terms": chosen_by("student", "peer", f"drop={FLIPPED}")}
OVER_BOTH_CLASSES = {"phases.0.terms": chosen_by("student", "peer", within="")}
ON_ALL_ROWS = {
    "phases.0.terms": ["bce(student.logit, reported)", "bce(peer.logit, reported)"],
    "controls": {"none": "nobody chooses"},
}
Rows = tuple[int, int, int]
Columns = dict[str, Any]


def decided(seed: int, rows: Rows) -> Columns:
    """Six fields of twenty values that decide a label; what is reported of it is wrong on two rows in five."""
    rng = np.random.default_rng(seed)
    v = rng.integers(20, size=(sum(rows), 6))
    z = sum(rng.normal(size=20)[v[:, k]] for k in range(6))
    y = z > np.quantile(z, 0.68)
    wrong = rng.random(len(y)) < FLIPPED
    return {f"x{k}": v[:, k] for k in range(6)} | {"y": y.astype(np.int8), "reported": (y ^ wrong).astype(np.int8)}


def drawn(seed: int, rows: Rows) -> Columns:
    """Fields that say how likely a label is, which is then drawn: one that surprises need not be wrong."""
    fields, logit = pairs_of_fields(seed, rows)
    y = clicks(logit, seed)
    wrong = np.random.default_rng([seed, 7]).random(len(y)) < FLIPPED
    return {f"x{k}": fields[f"c{k}"] for k in range(6)} | {"y": y, "reported": y ^ wrong.astype(np.int8)}


def reported(
    folder: Path, seed: int, *, rows: Rows = (16000, 200, 8000), labels: Callable[[int, Rows], Columns] = decided
) -> Lab:
    """Nets that learn labels by heart, two in five of which are wrong."""
    columns = {**labels(seed, rows), "part": splits(rows)}
    spec = {
        "split": SPLIT,
        "serving": {f"x{k}": "categorical" for k in range(6)},
        "post_event": {"y": "binary", "reported": "binary"},
    }
    train = {
        "batch": 256,
        "table_std": 0.05,
        "tables": {"rowwise_adagrad": {"lr": 0.1}},
        "dense": {"adam": {"lr": 0.01}},
        "stop": {"every": 10000, "keep": "last"},
    }
    overrides = {"label": "y", "train": train, "phases.0.epochs": 10, **CROSSED}
    overrides |= {f"members.{name}.net": {"mlp": [128, 64]} for name in ("student", "peer")}
    return Lab(folder / str(seed), ROW, columns, spec, overrides)


# 1: who chooses which rows


def small(folder: Path) -> Lab:
    """A few rows, all of them in every step; wide tables, so that losses differ."""
    lab = reported(folder, 0, rows=(300, 50, 100))
    lab.raw["train"] |= {"batch": 300, "table_std": 1.0}
    lab.raw["phases"][0] |= {"epochs": None, "steps": 12}
    return lab


def taught_rows(audit: Audit, bank: str) -> Tensor:
    """The rows on whose looked-up vectors a term has a gradient, (B,)."""
    return audit.tables[bank].ne(0).any(1)


def smallest_rows(loss_B: Tensor, class_B: Tensor, share: float) -> Tensor:
    """An independent count: floor(share n) rows of smallest loss of each class, (B,)."""
    found = torch.zeros(len(loss_B), dtype=torch.bool)
    for value in (0.0, 1.0):
        mine = [int(i) for i in torch.nonzero(class_B == value)]
        for i in sorted(mine, key=lambda i: float(loss_B[i]))[: int(np.floor(share * len(mine) + 1e-9))]:
            found[i] = True
    return found


def check_each_is_taught_what_the_other_finds_easy(lab: Lab, overrides: Mapping[str, Any]) -> None:
    answers = lab.outputs(overrides)
    label_B = torch.tensor(lab.columns["reported"][:300], dtype=torch.float32)
    loss = {name: bce(out.logits_BK[:, 0], label_B) for name, out in answers.items()}
    everywhere, _ = lab.audit(ON_ALL_ROWS)
    for step, share in ((250, 1 - FLIPPED / 2), (900, 1 - FLIPPED)):
        audits, _ = lab.audit(overrides, step=step)
        pairs = (("student", "peer"), ("peer", "student"))
        for found, plain, (net, other) in zip(audits, everywhere, pairs, strict=True):
            expected_B = smallest_rows(loss[other], label_B, share)
            assert 0 < int(expected_B.sum()) < 300
            assert torch.equal(taught_rows(found, net), expected_B), f"{net} is taught other rows at step {step}"
            assert found.reaches(net) and not found.reaches(other), "what chooses is taught"
            assert other not in found.tables
            mean_BW = plain.tables[net] * expected_B.unsqueeze(1) * 300 / expected_B.sum()
            torch.testing.assert_close(found.tables[net], mean_BW, rtol=1e-4, atol=1e-8, msg="it is no mean")


def check_nothing_is_left_out_at_first(lab: Lab, overrides: Mapping[str, Any]) -> None:
    audits, _ = lab.audit(overrides)
    plain, _ = lab.audit(arm="plain")
    for name, gradient in plain[0].dense.items():
        assert torch.equal(gradient, audits[0].dense[name]), name
    assert torch.equal(plain[0].tables["student"], audits[0].tables["student"])


def check_both_have_one_role(lab: Lab, overrides: Mapping[str, Any]) -> None:
    """With every name exchanged for the other one, everybody ends where it did."""
    job, _ = lab.job(overrides)
    terms = [
        text.replace("student", "*").replace("peer", "student").replace("*", "peer") for text in job.terms.values()
    ]
    exchanged = {**overrides, "phases.0.terms": terms, "members.student.serve": False, "members.peer.serve": True}
    first, second = lab.fit(overrides), lab.fit(exchanged)
    for name in ("student", "peer"):
        assert same(first.parameters(name), second.parameters(name)), f"{name} has another role"


def test_each_is_taught_what_the_other_finds_easy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = small(tmp_path)
    check_each_is_taught_what_the_other_finds_easy(lab, {})
    for wrong in (BY_ITSELF, ONE_WAY, FROM_THE_START, OVER_BOTH_CLASSES, OVER_THE_BATCH):
        with pytest.raises(AssertionError):
            check_each_is_taught_what_the_other_finds_easy(lab, wrong)
    lowest = selector.lowest
    monkeypatch.setattr(selector, "lowest", lambda loss_B, among_B, share: lowest(-loss_B, among_B, share))
    with pytest.raises(AssertionError):
        check_each_is_taught_what_the_other_finds_easy(lab, {})


def test_nothing_is_left_out_at_first(tmp_path: Path) -> None:
    lab = small(tmp_path)
    check_nothing_is_left_out_at_first(lab, {})
    with pytest.raises(AssertionError):
        check_nothing_is_left_out_at_first(lab, FROM_THE_START)


def test_both_have_one_role(tmp_path: Path) -> None:
    lab = small(tmp_path)
    check_both_have_one_role(lab, {})
    with pytest.raises(AssertionError):
        check_both_have_one_role(lab, ONE_WAY)


# 3: controls


def test_the_controls_choose_from_nothing(tmp_path: Path) -> None:
    lab = small(tmp_path)
    plain, shuffled = (lab.plan(arm=arm)[1] for arm in ("plain", "shuffled_signal"))
    assert list(plain.terms.values()) == ["bce(student.logit, reported)"]
    student, peer = shuffled.terms.values()
    assert "smallest(bce(shuffled(peer.logit), reported)" in student
    assert peer == chosen_by("student", "peer")[1]


# 2: what it is good for


def purity(found: Outcome) -> float:
    """The share of the rows chosen for the student at the end whose label is right."""
    summary = json.loads((found.folder / "fit.json").read_text())
    return float(summary["findings"]["student: kept rows whose 'reported' is 'y'"])


def outcomes(labs: list[Lab], overrides: Mapping[str, Any] | None = None, arm: str = "main") -> tuple[float, float]:
    """Test AUC of the student, and the purity of its rows, averaged over logs."""
    found = [lab.fit(overrides, seed=seed, arm=arm) for seed, lab in enumerate(labs)]
    pure = [purity(each) if arm != "plain" else np.nan for each in found]
    return float(np.mean([each.auc("student") for each in found])), float(np.mean(pure))


# Over 20 logs, mean (standard deviation; least, most): AUC over plain .092 (.028; .018, .134), purity .814 (.013; .780,
# .834), over nets that choose for themselves .026 (.018; -.014, .057). Forgetting from the first step on gives .046
# (.019) over plain: it is told apart by the rows that it is taught, above.


def check_chosen_rows_are_pure_and_teach_more(auc: float, pure: float, plain: float) -> None:
    assert pure > 0.78
    assert auc > plain + 0.05


def check_the_other_chooses_better(auc: float, by_itself: float) -> None:
    assert auc > by_itself + 0.008


# With drawn labels, over 20 logs, in the same form: AUC of plain .547 (.013; .523, .572), over plain .038 (.020;
# -.006, .076), of rows chosen from nothing .012 (.015; -.016, .055). The bound is half way between the two; half of
# the handbook's gain would be .034. What balance of the classes adds does not show in AUC: .0065 (.014; -.022, .031),
# in the handbook .032, and .006 (.018; -.018, .041) with its nets of 64 and 32, its rate .005 and its 8 epochs. It
# shows in the rate that is predicted: .025 (.023; -.012, .075) above what is reported, without balance .24 below
# (.06; .08, .34).


def check_chosen_rows_teach_more_of_drawn_labels(auc: float, plain: float) -> None:
    assert auc > plain + 0.025


def check_the_rate_of_reports_is_kept(lab: Lab, overrides: Mapping[str, Any]) -> None:
    said = sigmoid(lab.fit(overrides).logits("student")).mean()
    assert abs(said - lab.columns["reported"][lab.columns["part"] == 2].mean()) < 0.1


def largest(monkeypatch: pytest.MonkeyPatch, run: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """The twin that keeps the rows of largest loss."""
    lowest = selector.lowest
    with monkeypatch.context() as patch:
        patch.setattr(selector, "lowest", lambda loss_B, among_B, share: lowest(-loss_B, among_B, share))
        return run()


def test_chosen_rows_are_pure_and_teach_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labs = [reported(tmp_path, 0)]
    plain, _ = outcomes(labs, arm="plain")
    check_chosen_rows_are_pure_and_teach_more(*outcomes(labs), plain)
    with pytest.raises(AssertionError):
        check_chosen_rows_are_pure_and_teach_more(*largest(monkeypatch, lambda: outcomes(labs)), plain)


@pytest.mark.signature
def test_chosen_rows_are_pure_and_teach_more_over_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labs = [reported(tmp_path, seed) for seed in range(6)]
    plain, _ = outcomes(labs, arm="plain")
    auc, pure = outcomes(labs)
    by_itself, _ = outcomes(labs, BY_ITSELF)
    check_chosen_rows_are_pure_and_teach_more(auc, pure, plain)
    check_the_other_chooses_better(auc, by_itself)
    with pytest.raises(AssertionError):
        check_the_other_chooses_better(by_itself, by_itself)
    for wrong in (
        outcomes(labs, arm="shuffled_signal"),
        largest(monkeypatch, lambda: outcomes(labs)),
    ):
        with pytest.raises(AssertionError):
            check_chosen_rows_are_pure_and_teach_more(*wrong, plain)


def test_the_rate_of_reports_is_kept(tmp_path: Path) -> None:
    lab = reported(tmp_path, 0, labels=drawn)
    check_the_rate_of_reports_is_kept(lab, {})
    with pytest.raises(AssertionError):
        check_the_rate_of_reports_is_kept(lab, OVER_BOTH_CLASSES)


@pytest.mark.signature
def test_chosen_rows_teach_more_of_drawn_labels(tmp_path: Path) -> None:
    labs = [reported(tmp_path, seed, labels=drawn) for seed in range(6)]
    plain, _ = outcomes(labs, arm="plain")
    check_chosen_rows_teach_more_of_drawn_labels(outcomes(labs)[0], plain)
    shuffled, _ = outcomes(labs, arm="shuffled_signal")
    with pytest.raises(AssertionError):
        check_chosen_rows_teach_more_of_drawn_labels(shuffled, plain)


@pytest.mark.signature
def test_judged_by_reported_labels_nothing_is_seen(tmp_path: Path) -> None:
    """The twin that is evaluated on noisy labels: of their own they say that nothing was gained."""
    labs = [reported(tmp_path, seed) for seed in range(2)]
    wrong = {"label": "reported"}
    auc, plain = (
        float(np.mean([lab.fit(wrong, seed=seed, arm=arm).auc("student") for seed, lab in enumerate(labs)]))
        for arm in ("main", "plain")
    )
    with pytest.raises(AssertionError):
        check_chosen_rows_are_pure_and_teach_more(auc, 0.8, plain)
