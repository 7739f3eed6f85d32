"""D2, data distillation: a teacher labels rows by what it says of many views of each, and a student learns from both.

1. A row without label is taught as 1 if the mean of its eight views is among the highest of its device: as many of a
   device's rows as its labels are 1. Labels weigh six, substitutes four.
2. Views are drawn apart, and what they say is averaged row by row; the teacher stands still while the student learns.
3. The mean of the views knows more than one of them and nearly as much as the teacher without a mask.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from recdistill.data.batch import Batch
from recdistill.distill.batchwise import Quota
from recdistill.distill.signal import Scene
from recdistill.nets.inputs import Outputs
from tests.signatures.lab import Lab, Outcome, answering, same
from tests.signatures.traces import traced
from tests.signatures.worlds import World, fields

ROW = "data/omni_supervised"
VIEWS, DEVICES = 8, 4
SHARES = (0.6, 0.4)  # of labels, and of what stands for them
TERM = "bce(student.logit, quota({}, label, within=scenario)).rows(absent(label)) * 0.4"
MEAN = "mean(view[:].logit, of='probability')"
Answer = Callable[[str, Tensor], Tensor]


def world(seed: int, rows: Sequence[int]) -> World:
    """Half of the labels are known; devices have click rates of their own."""
    made = fields(seed, rows, labelled=0.5)
    columns = {**made.columns, "device": made.columns["c0"] % DEVICES}
    serving = {**made.spec["serving"], "device": "categorical"}
    return replace(made, columns=columns, spec={**made.spec, "serving": serving, "scenario": "device"})


def crowd(folder: Path, made: World, *, epochs: tuple[int, int], batch: int) -> Lab:
    overrides = {
        "members.student.net": {"mlp": [32]},
        "members.teacher.net": {"mlp": [32]},
        "phases.0.epochs": epochs[0],
        "phases.1.epochs": epochs[1],
        "train": {
            "batch": batch,
            "table_std": 0.1,
            "tables": {"rowwise_adagrad": {"lr": 0.05}},
            "dense": {"adam": {"lr": 0.005}},
            "stop": {"keep": "last"},
        },
    }
    return made.lab(folder, ROW, overrides)


@dataclass
class Lesson:
    """What the student hears in one step.

    Attributes:
        row_id_B: the rows.
        answer_B: what it says of them, as probabilities.
        slope_B: the gradient of all terms on its logit.
        views: what each view says of them, as probabilities.
    """

    row_id_B: NDArray[np.int64]
    answer_B: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    slope_B: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    views: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def mean_B(self) -> NDArray[np.float32]:
        """The mean of all views."""
        return np.mean([*self.views.values()], 0, dtype=np.float32)


def lessons(
    lab: Lab, overrides: Mapping[str, Any], *, seed: int = 0, heard: Answer | None = None
) -> tuple[list[Lesson], Outcome]:
    """All steps of the student; ``heard`` changes what arrives of each view."""
    found: list[Lesson] = []

    def listen(name: str, outputs: Outputs, batch: Batch) -> Outputs:
        row_id_B = batch.row_id_B.numpy()
        if name == "student" and outputs.logits_BK.requires_grad:
            found.append(Lesson(row_id_B, torch.sigmoid(outputs.logits_BK[:, 0].detach()).numpy()))
            lesson = found[-1]
            outputs.logits_BK.register_hook(lambda slope_BK: setattr(lesson, "slope_B", slope_BK[:, 0].numpy().copy()))
        elif name.startswith("view") and found and np.array_equal(found[-1].row_id_B, row_id_B):
            found[-1].views[name] = torch.sigmoid(outputs.logits_BK[:, 0]).numpy()
            if heard is not None:
                return outputs._replace(logits_BK=heard(name, outputs.logits_BK))
        return outputs

    with answering(listen):
        outcome = lab.fit(overrides, seed=seed)
    return found, outcome


# 1: what the student is taught


def check_substitutes_are_the_highest_of_each_device(
    lab: Lab, made: World, overrides: Mapping[str, Any], heard: Answer | None = None
) -> None:
    label_N = np.array([np.nan if y is None else y for y in made.columns["y"]], np.float64)
    for lesson in lessons(lab, overrides, heard=heard)[0]:
        label_B, device_B = label_N[lesson.row_id_B], made.columns["device"][lesson.row_id_B]
        known_B = ~np.isnan(label_B)
        assert len(lesson.views) == VIEWS, "not all views are heard"
        taught_B = lesson.answer_B - lesson.slope_B * np.where(
            known_B, known_B.sum() / SHARES[0], (~known_B).sum() / SHARES[1]
        )
        np.testing.assert_allclose(taught_B[known_B], label_B[known_B], atol=1e-3)
        np.testing.assert_allclose(taught_B[~known_B], taught_B[~known_B].round(), atol=1e-3)
        for device in range(DEVICES):
            labels = label_B[known_B & (device_B == device)]
            rows = ~known_B & (device_B == device)
            ones, mean_U = taught_B[rows] > 0.5, lesson.mean_B[rows]
            assert abs(ones.mean() - labels.mean()) <= 1 / rows.sum(), "the rate is another one"
            assert mean_U[ones].min(initial=1) >= mean_U[~ones].max(initial=0) - 1e-6, "others are higher"


def above_one_half(signal: Quota, scene: Scene) -> Tensor:
    label_B = signal.label.value(scene)
    return torch.where(torch.isnan(label_B), (signal.signal.value(scene) > 0).to(label_B.dtype), label_B)


def turned(name: str, logits_BK: Tensor) -> Tensor:
    """A view of the rows in another order, whose answers are not put back."""
    return logits_BK.roll(int(name.rpartition("_")[2]), 0)


def small(folder: Path) -> tuple[Lab, World]:
    made = world(0, (512, 64, 64))
    return crowd(folder, made, epochs=(3, 1), batch=256), made


WRONG = {
    "soft": {"phases.1.terms.1": f"soft(student.logit, {MEAN}).rows(absent(label)) * 0.4"},
    "soft, without views": {"phases.1.terms.1": "soft(student.logit, teacher.logit).rows(absent(label)) * 0.4"},
    "without views": {"phases.1.terms.1": TERM.format("teacher.logit")},
    "one view": {"phases.1.terms.1": TERM.format("view[0].logit")},
    "one rate for all": {"phases.1.terms.1": TERM.format(MEAN).replace(", within=scenario", "")},
    "half and half": {"phases.1.terms.0": "bce(student.logit, label) * 0.5"},
}


def test_substitutes_are_the_highest_of_each_device(tmp_path: Path) -> None:
    lab, made = small(tmp_path)
    check_substitutes_are_the_highest_of_each_device(lab, made, {})


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_other_lessons_are_noticed(tmp_path: Path, wrong: Mapping[str, Any]) -> None:
    with pytest.raises(AssertionError):
        check_substitutes_are_the_highest_of_each_device(*small(tmp_path), wrong)


def test_other_rules_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, made = small(tmp_path)
    with pytest.raises(AssertionError):
        check_substitutes_are_the_highest_of_each_device(lab, made, {}, turned)
    monkeypatch.setattr(Quota, "value", above_one_half)
    with pytest.raises(AssertionError):
        check_substitutes_are_the_highest_of_each_device(lab, made, {})


def check_rates_hold_over_a_whole_pass(lab: Lab, made: World, overrides: Mapping[str, Any]) -> None:
    """A quota that is met in each batch drifts by how labels are spread over batches, so 1/n does not hold here.

    Of the device that is furthest off, over 20 logs: .016 (standard deviation .007; .007, .034); with one rate for all
    devices .104 (.043; .046, .195).
    """
    label_N = np.array([np.nan if y is None else y for y in made.columns["y"]], np.float64)
    heard = lessons(lab, overrides)[0]
    row_id_N = np.concatenate([lesson.row_id_B for lesson in heard])
    slope_N = np.concatenate([lesson.slope_B for lesson in heard])
    device_N, unknown_N = made.columns["device"][row_id_N], np.isnan(label_N[row_id_N])
    ones_N = slope_N < 0  # towards 1
    for device in range(DEVICES):
        of_N = device_N == device
        labels_N = label_N[row_id_N][~unknown_N & of_N]
        assert abs(ones_N[unknown_N & of_N].mean() - labels_N.mean()) < 0.04


def test_rates_hold_over_a_whole_pass(tmp_path: Path) -> None:
    lab, made = small(tmp_path)
    check_rates_hold_over_a_whole_pass(lab, made, {})
    with pytest.raises(AssertionError):
        check_rates_hold_over_a_whole_pass(lab, made, WRONG["one rate for all"])


# 2: views and teacher


def check_views_are_drawn_apart(lab: Lab, overrides: Mapping[str, Any]) -> None:
    first, *_ = lessons(lab, overrides)[0]
    assert len(first.views) == VIEWS
    assert len({view.tobytes() for view in first.views.values()}) == VIEWS, "some views are the same"


def check_teacher_stands_still(lab: Lab, overrides: Mapping[str, Any]) -> None:
    steps = [step for step in traced(lab, overrides)[0] if step.phase == 1]
    for step in steps:
        assert same(step.before["teacher"], step.after["teacher"]), "the teacher moves"
        assert not same(step.before["student"], step.after["student"])
    assert not same(steps[0].before["student"], steps[0].before["teacher"]), "the student begins as the teacher"


def test_views_are_drawn_apart(tmp_path: Path) -> None:
    lab, _ = small(tmp_path)
    check_views_are_drawn_apart(lab, {})
    for wrong in ({"members.view.distort": None}, {"members.view.copies": VIEWS - 1}):
        with pytest.raises(AssertionError):
            check_views_are_drawn_apart(lab, wrong)


def test_the_teacher_stands_still(tmp_path: Path) -> None:
    lab, _ = small(tmp_path)
    check_teacher_stands_still(lab, {})
    terms = [*lab.raw["phases"][1]["terms"], "bce(teacher.logit, label)"]
    for wrong in ({"phases.1.terms": terms}, {"phases.1.carry": {"student": "teacher"}}):
        with pytest.raises(AssertionError):
            check_teacher_stands_still(lab, wrong)


def check_answers_are_put_back(lab: Lab, back: int) -> None:
    """Views of slates in other orders say, once they are put back, of each row what the teacher says of it."""
    found_SC, said_SC = mean_over_slates(lab, back)
    np.testing.assert_allclose(found_SC, said_SC, atol=1e-6)


def mean_over_slates(lab: Lab, back: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The mean that is heard if the k-th view sees each slate turned by k, and the teacher's answers, (S, C).

    Args:
        lab: without masks, so that views differ by their order alone.
        back: by how many times k each answer is turned back.
    """
    found: list[Tensor] = []
    value = Quota.value

    def hear(signal: Quota, scene: Scene) -> Tensor:
        found.append(torch.sigmoid(signal.signal.value(scene)))
        return value(signal, scene)

    def turn(name: str, outputs: Outputs, _: Batch) -> Outputs:
        if not name.startswith("view"):
            return outputs
        by = int(name.rpartition("_")[2])
        seen_SC = outputs.logits_BK.reshape(-1, VIEWS).roll(by, 1)
        return outputs._replace(logits_BK=seen_SC.roll(-by * back, 1).reshape(-1, 1))

    unmasked = {"members.view.distort": None}
    with pytest.MonkeyPatch.context() as patch, answering(turn):
        patch.setattr(Quota, "value", hear)
        lab.audit(unmasked, phase=1)
    said_B = torch.sigmoid(lab.outputs(unmasked)["teacher"].logits_BK)
    return found[-1].detach().reshape(-1, VIEWS).numpy(), said_B.reshape(-1, VIEWS).numpy()


def test_answers_are_put_back(tmp_path: Path) -> None:
    lab, _ = small(tmp_path)
    check_answers_are_put_back(lab, back=1)
    with pytest.raises(AssertionError):
        check_answers_are_put_back(lab, back=0)


def test_answers_that_are_not_put_back_collapse_to_the_mean_of_their_slate(tmp_path: Path) -> None:
    lab, _ = small(tmp_path)
    found_SC, said_SC = mean_over_slates(lab, back=0)
    assert said_SC.std(1).min() > 1e-3
    assert found_SC.std(1).max() < 1e-6
    np.testing.assert_allclose(found_SC[:, 0], said_SC.mean(1), atol=1e-6)


# 3: what the views know


def knowledge(folder: Path, seed: int, heard: Answer | None = None, *, rows: int = 8000) -> NDArray[np.float64]:
    """The correlation with the true probability: of one view, of the mean of all, and of the teacher without a mask."""
    made = world(seed, (rows, 100, 100))
    lab = crowd(folder / str(seed), made, epochs=(6, 1), batch=256)
    found, outcome = lessons(lab, {}, seed=seed)
    true_N = made.probability_N[np.concatenate([lesson.row_id_B for lesson in found])]
    arrived = heard or (lambda _, value: value)
    views = [
        {name: arrived(name, torch.from_numpy(view)).numpy() for name, view in lesson.views.items()} for lesson in found
    ]
    one = np.concatenate([view["view_0"] for view in views])
    mean = np.concatenate([np.mean([*view.values()], 0) for view in views])
    clean = torch.sigmoid(lab.answers(outcome, "train")["teacher"].logits_BK[:, 0]).numpy()
    pairs = ((true_N, one), (true_N, mean), (made.probability_N[: len(clean)], clean))
    return np.array([np.corrcoef(*pair)[0, 1] for pair in pairs])


def check_mean_of_views_knows_more(found: NDArray[np.float64]) -> None:
    """Over 20 logs .528, .630 and .649: the mean of eight is .1014 (sd .0087) ahead of one, .84 (least .79) of the way.

    Half of both is asked for.
    """
    one, mean, clean = found
    assert mean - one > 0.05
    assert mean - one > 0.5 * (clean - one)


def test_the_mean_of_views_knows_more(tmp_path: Path) -> None:
    found = knowledge(tmp_path, 0, rows=4000)
    check_mean_of_views_knows_more(found)
    with pytest.raises(AssertionError):
        check_mean_of_views_knows_more(found[[0, 0, 2]])


@pytest.mark.signature
def test_the_mean_of_views_knows_more_over_seeds(tmp_path: Path) -> None:
    check_mean_of_views_knows_more(np.mean([knowledge(tmp_path, seed) for seed in range(6)], 0))
    with pytest.raises(AssertionError):
        check_mean_of_views_knows_more(np.mean([knowledge(tmp_path, seed, turned) for seed in range(6)], 0))
