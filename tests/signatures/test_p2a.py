"""P2a, Learning from Noisy Labels with Distillation: a teacher of few verified labels hedges many that are often wrong.

1. Each row is taught the verified label where there is one, else the reported one, unbiased, and beside it what the
   teacher says, at their weights. With all weight on labels it is plain training, bit for bit.
2. The teacher learns from verified labels alone.
3. Smoothed over a graph the rates of scenarios are ``G r``; a graph without edges changes nothing.
4. The share of a hedged label is that of the formula, and it is measured by teachers that have not seen the rows.
5. Of labels a third of which is wrong a mixture teaches more than labels or teacher alone, and unbiased labels keep the
   rate of clicks.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from recdistill.data.batch import Batch
from recdistill.distill.labels import Hedged
from recdistill.distill.signal import Scene
from recdistill.nets.inputs import Outputs
from tests.signatures.lab import SPLIT, Lab, answering, clicks, mean_auc, pairs_of_fields, same, slopes

ROW = "applications/noisy_labels"
NO_CONTROLS = {"controls": {"none": "a twin has none"}}
UNBIASED = "first_known(label, unflipped(reported, false_positive={0}, false_negative={0}))"


def noisy(
    folder: Path, seed: int, overrides: Mapping[str, Any], *, rows: tuple[int, int, int], wrong: float = 0.2
) -> Lab:
    """Labels verified on one training row in eight, and reported on all, some of them wrong."""
    columns, logit = pairs_of_fields(seed, rows)
    y = clicks(logit, seed)
    flips = np.random.default_rng([seed, 2]).random(len(y)) < wrong
    verified = (columns["part"] > 0) | (np.arange(len(y)) % 8 == 0)
    columns |= {
        "id": np.arange(len(y)),
        "scene": columns["c0"] % 4,
        "y": [int(label) if known else None for label, known in zip(y, verified, strict=True)],
        "reported": np.where(flips, 1 - y, y).astype(np.int8),
    }
    spec = {
        "row_id": "id",
        "scenario": "scene",
        "split": SPLIT,
        "serving": dict.fromkeys((f"c{k}" for k in range(6)), "categorical"),
        "post_event": {"y": "binary", "reported": "binary"},
    }
    return Lab(folder / str(seed), ROW, columns, spec, {"label": "y", "members.teacher.view": ["serving"], **overrides})


def small(folder: Path) -> Lab:
    """A logistic student, so that its gradient can be read row by row."""
    nets = {"members.student.net": {"mlp": []}, "members.teacher.net": {"mlp": [8]}}
    return noisy(folder, 0, {**nets, "train": {"batch": 400, "table_std": 1.0}}, rows=(800, 100, 100))


def brief(folder: Path) -> Lab:
    lab = small(folder)
    for phase in lab.raw["phases"]:
        phase["epochs"] = 2
    return lab


# 1: what a row is taught


def taught(lab: Lab, overrides: Mapping[str, Any]) -> Tensor:
    """The target of each row that its gradient implies, (B,)."""
    audits, cast = lab.audit(overrides, phase=1)
    slope_B = torch.stack([slopes(audit, cast, "student") for audit in audits]).sum(0)
    return lab.outputs(overrides)["student"].logits_BK[:, 0].sigmoid() - len(slope_B) * slope_B


def labels(lab: Lab) -> tuple[Tensor, Tensor]:
    """Verified labels (NaN where there is none) and reported ones, (B,)."""
    columns = lab.batch().labels
    return columns["y"], columns["reported"]


def check_labels_and_teacher_teach_at_their_weights(lab: Lab, overrides: Mapping[str, Any]) -> None:
    verified_B, reported_B = labels(lab)
    assert 40 < int((~verified_B.isnan()).sum()) < 60
    unbiased_B = torch.where(verified_B.isnan(), (reported_B - 0.2) / 0.6, verified_B)
    teacher_B = lab.outputs(overrides)["teacher"].logits_BK[:, 0].sigmoid()
    torch.testing.assert_close(taught(lab, overrides), 0.3 * unbiased_B + 0.7 * teacher_B, rtol=0, atol=1e-5)


def replaced(*terms: str) -> dict[str, Any]:
    """The student taught by other terms."""
    return {"phases.1.terms": [*terms], **NO_CONTROLS}


LABELS_REPLACED = replaced("soft(student.logit, teacher.logit)")
CLEAN_ONLY = replaced("bce(student.logit, label)")
FINE_TUNED = {
    "phases": [
        {"epochs": 20, "terms": ["bce(teacher.logit, label)"]},
        {"epochs": 6, "terms": ["bce(student.logit, reported)"]},
        {"epochs": 20, "terms": ["bce(student.logit, label)"]},
    ],
    **NO_CONTROLS,
}
EVERYTHING = {"phases.0.terms": ["bce(teacher.logit, first_known(label, reported))"], **NO_CONTROLS}


def test_labels_and_teacher_teach_at_their_weights(tmp_path: Path) -> None:
    lab = small(tmp_path)
    check_labels_and_teacher_teach_at_their_weights(lab, {})
    for wrong in (LABELS_REPLACED, CLEAN_ONLY, FINE_TUNED, lab.raw["variants"]["biased"]):
        with pytest.raises(AssertionError):
            check_labels_and_teacher_teach_at_their_weights(lab, wrong)


def check_labels_alone_are_plain_training(lab: Lab, share: float) -> None:
    """Both after the teacher's phase, because which rows meet in a step depends on the phases before."""
    label, teacher = lab.raw["phases"][1]["terms"]
    weights = {"phases.1.terms": [label.replace("* 0.3", f"* {share}"), teacher.replace("* 0.7", f"* {1 - share}")]}
    plain = [*lab.plan(arm="plain")[1].terms.values()]
    assert plain == [label.removesuffix(" * 0.3")]
    assert same(lab.fit(weights).parameters("student"), lab.fit(replaced(*plain)).parameters("student"))


def test_labels_alone_are_plain_training(tmp_path: Path) -> None:
    lab = brief(tmp_path)
    check_labels_alone_are_plain_training(lab, 1.0)
    with pytest.raises(AssertionError):
        check_labels_alone_are_plain_training(lab, 0.5)


# 2: what the teacher learns from


def check_the_teacher_sees_verified_labels_alone(folder: Path, overrides: Mapping[str, Any]) -> None:
    """Whatever is reported, the teacher is the same, and the student another one."""
    one, other = brief(folder / "one"), brief(folder / "other")
    changed = {**other.columns, "reported": 1 - other.columns["reported"]}
    pl.DataFrame(changed).write_parquet(other.folder / "log.parquet")
    first, second = one.fit(overrides), other.fit(overrides)
    assert same(first.parameters("teacher"), second.parameters("teacher"))
    assert not same(first.parameters("student"), second.parameters("student"))


def test_the_teacher_sees_verified_labels_alone(tmp_path: Path) -> None:
    check_the_teacher_sees_verified_labels_alone(tmp_path / "right", {})
    with pytest.raises(AssertionError):
        check_the_teacher_sees_verified_labels_alone(tmp_path / "wrong", EVERYTHING)


# 3: the graph

GRAPH = "4 1 1 0; 1 4 0 1; 1 0 4 1; 0 1 1 4"  # of the job
LOPSIDED = "1 1 0 0; 0 1 0 0; 0 2 1 1; 0 0 3 1"
TURNED = "1 0 0 0; 1 1 2 0; 0 0 1 3; 0 0 1 1"


def over(lab: Lab, graph: str) -> dict[str, Any]:
    """The job's own smoothing, over a graph, and the teacher alone."""
    term = lab.raw["variants"]["graph"]["phases.1.terms.1"]
    assert GRAPH in term
    return replaced(term.replace(GRAPH, graph).replace(" * 0.7", ""))


def rates(lab: Lab, said_B: Tensor) -> Tensor:
    """The mean of each scene, (4,)."""
    scene_B = torch.from_numpy(lab.columns["scene"][: len(said_B)])
    return torch.stack([said_B[scene_B == k].mean() for k in range(4)])


def check_rates_move_along_the_graph(lab: Lab, graph: str, overrides: Mapping[str, Any]) -> None:
    graph_KK = torch.tensor([[float(n) for n in line.split()] for line in graph.split(";")])
    shares_KK = graph_KK / graph_KK.sum(1, keepdim=True)
    before_B = lab.outputs(overrides)["teacher"].logits_BK[:, 0].sigmoid()
    after_B = taught(lab, overrides)
    before_K = rates(lab, before_B)
    assert float(before_K.max() - before_K.min()) > 0.005
    torch.testing.assert_close(rates(lab, after_B), shares_KK @ before_K, rtol=0, atol=1e-5)
    scene_B = torch.from_numpy(lab.columns["scene"][: len(after_B)])
    moved_B = (shares_KK @ before_K - before_K)[scene_B]
    torch.testing.assert_close(after_B, before_B + moved_B, rtol=0, atol=1e-5)


def test_rates_move_along_the_graph(tmp_path: Path) -> None:
    lab = small(tmp_path)
    alone = "1 0 0 0; 0 1 0 0; 0 0 1 0; 0 0 0 1"
    for graph in (GRAPH, LOPSIDED, alone):
        check_rates_move_along_the_graph(lab, graph, over(lab, graph))
    check_rates_move_along_the_graph(lab, alone, LABELS_REPLACED)
    for wrong in (TURNED, alone):
        with pytest.raises(AssertionError):
            check_rates_move_along_the_graph(lab, LOPSIDED, over(lab, wrong))


# 4: the share of a hedged label

FOLDS = {"members.teacher.copies": 2, "members.teacher.folds": True, "controls": ["shuffled"]}


def hedged(lab: Lab) -> dict[str, Any]:
    """The job's own variant on the columns of this log."""
    variant = dict(lab.raw["variants"]["hedged"])
    assert {"copies": 2, "folds": True}.items() <= variant.pop("members.teacher").items()
    return {**variant, **FOLDS}


IN_SAMPLE = {
    "phases.1.terms": ["bce(student.logit, hedged(first_known(label, reported), teacher.logit))"],
    **NO_CONTROLS,
}


def check_the_share_is_that_of_the_formula(lab: Lab) -> None:
    """Of a teacher that is near, and of one that is far."""
    verified_B, reported_B = labels(lab)
    known_B = ~verified_B.isnan()
    for logit in (-0.75, 2.0):

        def saying(name: str, out: Outputs, _: Batch, logit: float = logit) -> Outputs:
            known = name.startswith("teacher")
            return out._replace(logits_BK=torch.full_like(out.logits_BK, logit)) if known else out

        with answering(saying):
            found_B = taught(lab, hedged(lab))
        said = 1 / (1 + np.exp(-logit))
        of_label, of_teacher = (
            float(((guess - verified_B) ** 2)[known_B].mean()) for guess in (reported_B, torch.tensor(said))
        )
        share = of_teacher / (of_teacher + of_label)
        label_B = torch.where(known_B, verified_B, reported_B)
        torch.testing.assert_close(found_B, share * label_B + (1 - share) * float(said), rtol=0, atol=1e-5)


def test_the_share_is_that_of_the_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = small(tmp_path)
    check_the_share_is_that_of_the_formula(lab)
    share = Hedged.share
    for wrong in (lambda *_: torch.tensor(0.5), lambda *given: 1 - share(*given)):
        monkeypatch.setattr(Hedged, "share", wrong)
        with pytest.raises(AssertionError):
            check_the_share_is_that_of_the_formula(lab)


def by_heart(folder: Path) -> Lab:
    """Teachers that know the verified rows by heart."""
    train = {
        "batch": 400,
        "table_std": 0.3,
        "tables": {"rowwise_adagrad": {"lr": 0.1}},
        "dense": {"adam": {"lr": 0.01}},
        "stop": {"every": 1000, "keep": "last"},
    }
    nets = {"members.student.net": {"mlp": [8]}, "members.teacher.net": {"mlp": [64, 32]}}
    lab = noisy(folder, 0, {**nets, "train": train}, rows=(4000, 200, 2000))
    for phase, epochs in zip(lab.raw["phases"], (20, 1), strict=True):
        phase["epochs"] = epochs
    return lab


def check_the_share_is_that_of_rows_never_seen(lab: Lab, overrides: Mapping[str, Any]) -> None:
    found: list[float] = []
    share = Hedged.share

    def listening(signal: Hedged, scene: Scene) -> Tensor:
        value = share(signal, scene)
        if len(scene.batch) > 2:  # a rehearsal before training has two
            found.append(float(value))
        return value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hedged, "share", listening)
        outcome = lab.fit(overrides)
    test = lab.columns["part"] == 2
    y, reported = (np.array(lab.columns[name], dtype=float)[test] for name in ("y", "reported"))
    teachers = [name for name in outcome.cast.heads if name.startswith("teacher")]
    of_teacher = np.mean([(1 / (1 + np.exp(-outcome.logits(name))) - y) ** 2 for name in teachers])
    expected = of_teacher / (of_teacher + np.mean((reported - y) ** 2))
    assert abs(np.mean(found) - expected) < 0.1  # .03 here; next to nothing is left of it in sample


def test_the_share_is_that_of_rows_never_seen(tmp_path: Path) -> None:
    lab = by_heart(tmp_path)
    check_the_share_is_that_of_rows_never_seen(lab, hedged(lab))
    with pytest.raises(AssertionError):
        check_the_share_is_that_of_rows_never_seen(lab, IN_SAMPLE)


# 5: what it is good for

WRONG = 0.35


def mixing(folder: Path, seed: int) -> Lab:
    """Two thousand verified rows among sixteen thousand whose labels are wrong on a third."""
    train = {
        "batch": 256,
        "table_std": 0.05,
        "tables": {"rowwise_adagrad": {"lr": 0.1}},
        "dense": {"adam": {"lr": 0.005}},
        "stop": {"every": 20, "patience": 5},
    }
    lab = noisy(folder, seed, {"train": train}, rows=(16000, 2000, 8000), wrong=WRONG)
    lab.raw["phases"][1]["epochs"] = 6
    return lab


def leaking(lab: Lab) -> Lab:
    """Verified training rows once more in place of the validation rows."""
    log = pl.DataFrame(lab.columns)
    valid_N, known_N = (log["part"] == 1).to_numpy(), log["y"].is_not_null().to_numpy() & (log["part"] == 0).to_numpy()
    row_N = np.arange(len(log))
    row_N[valid_N] = np.flatnonzero(known_N)[: valid_N.sum()]
    log[row_N].with_columns(log["id"], log["part"]).write_parquet(lab.folder / "log.parquet")
    return lab


def check_the_best_weight_is_that_of_rows_never_seen(lab: Lab) -> None:
    found = lab.fit(weighing(0.6))
    measured = json.loads((found.folder / "fit.json").read_text())["findings"]
    test_N = lab.columns["part"] == 2
    y_N, reported_N = (np.array(lab.columns[name], dtype=float)[test_N] for name in ("y", "reported"))
    said_N = 1 / (1 + np.exp(-found.logits("teacher")))
    of_teacher, of_label = (float(((guess_N - y_N) ** 2).mean()) for guess_N in (said_N, reported_N))
    assert abs(measured["best weight of 'reported' beside teacher"] - of_teacher / (of_teacher + of_label)) < 0.1


def test_the_best_weight_is_that_of_rows_never_seen(tmp_path: Path) -> None:
    """From that of test rows it differs, over 20 logs, by .006 (standard deviation .006; .001, .022); where rows of
    validation were trained on by .37 (.06; .21, .46).
    """
    right, wrong = mixing(tmp_path / "right", 0), leaking(mixing(tmp_path / "wrong", 0))
    check_the_best_weight_is_that_of_rows_never_seen(right)
    with pytest.raises(AssertionError):
        check_the_best_weight_is_that_of_rows_never_seen(wrong)


def weighing(share: float, label: str = "first_known(label, reported)") -> dict[str, Any]:
    """The two targets at other weights."""
    terms = [f"bce(student.logit, {label}) * {share}"] if share > 0 else []
    return replaced(*terms, *([f"soft(student.logit, teacher.logit) * {1 - share}"] if share < 1 else []))


def check_a_mixture_teaches_more(mixed: float, labels_alone: float, teacher_alone: float) -> None:
    """Over 20 logs the mixture is .010 (standard deviation .006; -.002, .018) above the better end, a teacher alone or
    labels alone; on average .018 above labels, .012 above the teacher. Half of what is measured. Measured likewise,
    verified labels alone are at -.001 (.008; -.017, .016) and a teacher of all labels leaves -.004 (.010; -.031, .012).
    A student of reported labels that is fine-tuned on verified ones reaches .004 (.008; -.013, .018): worse than the
    mixture, but too near to be told from it by AUC, so that it is told by what each row is taught, above.
    """
    assert mixed > max(labels_alone, teacher_alone) + 0.005


WRONG_MIXTURES = {"clean only": CLEAN_ONLY, "teacher of everything": {**weighing(0.6), **EVERYTHING}}


def check_mixtures(labs: list[Lab], wrong: Mapping[str, Mapping[str, Any]]) -> None:
    labels_alone, mixed, teacher_alone = (mean_auc(labs, "student", weighing(share)) for share in (1.0, 0.6, 0.0))
    check_a_mixture_teaches_more(mixed, labels_alone, teacher_alone)
    for overrides in wrong.values():
        with pytest.raises(AssertionError):
            check_a_mixture_teaches_more(mean_auc(labs, "student", overrides), labels_alone, teacher_alone)


def test_a_mixture_teaches_more(tmp_path: Path) -> None:
    """On a log where the difference is as large as on any."""
    check_mixtures([mixing(tmp_path, 5)], {"teacher of everything": WRONG_MIXTURES["teacher of everything"]})


@pytest.mark.signature
def test_a_mixture_teaches_more_over_logs(tmp_path: Path) -> None:
    check_mixtures([mixing(tmp_path, seed) for seed in range(6)], WRONG_MIXTURES)


def check_the_rate_of_clicks_is_kept(lab: Lab, overrides: Mapping[str, Any]) -> None:
    """Of reported labels .45 are 1, of true ones .32."""
    true = np.array(lab.columns["y"], dtype=float)[lab.columns["part"] == 2].mean()
    said = 1 / (1 + np.exp(-lab.fit(overrides).logits("student")))
    assert abs(said.mean() - true) < 0.03


@pytest.mark.signature
def test_the_rate_of_clicks_is_kept(tmp_path: Path) -> None:
    lab = mixing(tmp_path, 0)
    check_the_rate_of_clicks_is_kept(lab, weighing(0.6, UNBIASED.format(WRONG)))
    with pytest.raises(AssertionError):
        check_the_rate_of_clicks_is_kept(lab, weighing(0.6))
