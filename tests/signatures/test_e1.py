"""E1, Learning from Multiple Teacher Networks: answers are averaged, and of layers only the order of distances crosses.

1. The target of the answers is the mean of softened probabilities.
2. A teacher whose layer is scaled, turned and shifted votes as before; who votes first does not matter.
3. Two teachers who agree outvote a third one that talks nonsense, on every triplet.
4. Taught by the vote alone, a student orders distances as its teachers do, also between rows of test, each of which is
   a combination of values that it has never met; the values are known.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recdistill.data.batch import Batch
from recdistill.losses import order
from recdistill.losses.catalog import LOSSES
from recdistill.losses.order import lead, opinion
from recdistill.nets.inputs import Outputs
from tests.signatures.lab import SPLIT, Lab, answering, clicks, splits

ROW = "ensemble/multiple_teachers"
TEACHERS = ("dwell", "cart", "cross")
LOGITS, LAYERS = (", ".join(f"{name}.{tap}" for name in TEACHERS) for tap in ("logit", "hidden[0]"))
PROJECTED = f"l2(adapt(student.hidden[0], width=8), mean({LAYERS})) * 0.1"


def shop(folder: Path, seed: int, rows: tuple[int, int, int], overrides: Mapping[str, Any]) -> Lab:
    """Rows in three dimensions: each teacher sees roughly where they lie, in part; the student reads a code of each.

    Of the 8000 codes, each of three digits from 0 to 19, training knows those whose sum is odd, and test the others.
    Labels depend on one dimension, which the first teacher does not see, so that answers do not tell where rows lie.
    """
    rng = np.random.default_rng(seed)
    place_KV, code_NK = rng.normal(size=(3, 20)), rng.integers(20, size=(sum(rows), 3))
    part_N = splits(rows)
    code_NK[:, 2] ^= (code_NK.sum(1) + (part_N < 2)) % 2
    x_NK = place_KV[np.arange(3), code_NK] + 0.1 * rng.normal(size=(sum(rows), 3))
    columns = {f"x{k}": x_NK[:, k] for k in range(3)} | {f"code{k}": code_NK[:, k] for k in range(3)}
    columns |= {"y": clicks(2 * x_NK[:, 2], seed), "part": part_N}
    spec = {
        "split": SPLIT,
        "serving": {f"code{k}": "categorical" for k in range(3)},
        "post_event": {"y": "binary"} | {f"x{k}": "numeric" for k in range(3)},
    }
    own = {
        "label": "y",
        "privileged": ["x0", "x1", "x2"],
        "members.student.dropout": 0.0,
        "members.dwell.view": ["x0", "x1"],
        "members.cart.view": ["x1", "x2"],
        "members.cross.view": ["privileged"],
    }
    return Lab(folder / str(seed), ROW, columns, spec, {**own, **overrides})


def small(folder: Path) -> Lab:
    """Wide tables, so that the student's layers differ, and layers of one width, which wrong losses need."""
    nets = {f"members.{name}.net": {"mlp": [8]} for name in (*TEACHERS, "student")}
    return shop(folder, 0, (256, 60, 60), {**nets, "train": {"batch": 128, "table_std": 2.0}})


# 1: the mean of softened answers


def check_target_is_the_mean_of_softened_probabilities(lab: Lab, overrides: Mapping[str, Any]) -> None:
    """All rows have one target, so the student's output bias tells what it is."""
    said = {"dwell": 9.0, "cart": -3.0, "cross": -6.0}

    def constant(name: str, out: Outputs, _: Batch) -> Outputs:
        return out._replace(logits_BK=torch.full_like(out.logits_BK, said[name])) if name in said else out

    with answering(constant):
        audits, _ = lab.audit(overrides, phase=1)
    slope = float(audits[1].dense["student.net.out.bias"])
    answer = float((lab.outputs(overrides)["student"].logits_BK / 3).sigmoid().mean())
    assert answer - slope / 3 == pytest.approx(
        float(np.mean([1 / (1 + np.exp(-z / 3)) for z in said.values()])), abs=1e-5
    )


def test_the_target_is_the_mean_of_softened_probabilities(tmp_path: Path) -> None:
    lab = small(tmp_path)
    check_target_is_the_mean_of_softened_probabilities(lab, {})
    for target in (f"mean({LOGITS})", f"mean({LOGITS}, of='probability')"):
        with pytest.raises(AssertionError):
            wrong = {"phases.1.terms.1": f"soft(student.logit, {target}, temperature=3)"}
            check_target_is_the_mean_of_softened_probabilities(lab, wrong)


# 2, 3: the vote


def lesson(lab: Lab, overrides: Mapping[str, Any], layers: Callable[[str, Tensor], Tensor] | None = None) -> Tensor:
    """What the term on layers teaches the student's codes, with other layers of teachers, if given."""

    def changed(name: str, out: Outputs, _: Batch) -> Outputs:
        return out._replace(hidden=[layers(name, h) for h in out.hidden]) if layers and name in TEACHERS else out

    with answering(changed):
        audits, _ = lab.audit(overrides, phase=1)
    return audits[2].tables["student"]


def moved(name: str, layer_BH: Tensor) -> Tensor:
    """The layer scaled, turned and shifted, in another way for each teacher."""
    place = TEACHERS.index(name)
    draw = torch.Generator().manual_seed(place)
    turn, _ = torch.linalg.qr(torch.randn(layer_BH.shape[1], layer_BH.shape[1], generator=draw))
    return (10.0 * (place + 1) * layer_BH) @ turn + torch.randn(layer_BH.shape[1], generator=draw)


def check_only_the_order_of_distances_crosses(lab: Lab, overrides: Mapping[str, Any]) -> None:
    plain = lesson(lab, overrides)
    assert plain.any()
    torch.testing.assert_close(lesson(lab, overrides, moved), plain, rtol=0, atol=1e-5 * float(plain.abs().max()))


def check_two_who_agree_outvote_a_third(lab: Lab, overrides: Mapping[str, Any]) -> None:
    """Whoever talks nonsense, the other two say the same, each in numbers of its own."""
    layer_BH = lab.outputs(overrides)["dwell"].hidden[0]
    nonsense_BH = 9 * torch.randn(layer_BH.shape, generator=torch.Generator().manual_seed(0))
    agreed = lesson(lab, overrides, lambda _, __: layer_BH)
    assert agreed.any()
    for place in range(len(TEACHERS)):
        others = {name: moved(name, layer_BH) for name in TEACHERS} | {TEACHERS[place]: nonsense_BH}
        outvoted = lesson(lab, overrides, lambda name, _, said=others: said[name])
        torch.testing.assert_close(outvoted, agreed, rtol=0, atol=1e-5 * float(agreed.abs().max()))


def check_the_order_of_teachers_says_nothing(lab: Lab, overrides: Mapping[str, Any]) -> None:
    turned = ", ".join(reversed(LAYERS.split(", ")))
    plain = lesson(lab, overrides)
    other = {"phases.1.terms.2": f"relative_order(student.hidden[0], {turned}, margin=0.2) * 0.1"}
    assert plain.any()
    assert torch.equal(lesson(lab, {**overrides, **other}), plain)


def of_one_layer(*places: int) -> Callable[..., Tensor]:
    """A loss on the order of distances in the mean of some teachers' layers."""

    def loss(student_BH: Tensor, *teacher_BH: Tensor, margin: float = 0.2) -> Tensor:
        mean_BH = torch.stack([teacher_BH[place] for place in places]).mean(0)
        return LOSSES["ordered"](student_BH, mean_BH, margin=margin)

    return loss


@pytest.mark.parametrize(
    ("check", "heard"),
    [
        (check_only_the_order_of_distances_crosses, [(0, 1, 2), (0, 2)]),
        (check_two_who_agree_outvote_a_third, [(0, 1, 2), (0, 2), (0,), (1,), (2,)]),
    ],
)
def test_teachers_vote(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    check: Callable[[Lab, Mapping[str, Any]], None],
    heard: Sequence[tuple[int, ...]],
) -> None:
    lab = small(tmp_path)
    check(lab, {})
    with pytest.raises(AssertionError):
        check(lab, {"phases.1.terms.2": PROJECTED})
    monkeypatch.setitem(LOSSES, "ordered", LOSSES["relative_order"])
    for places in heard:
        with monkeypatch.context() as patch, pytest.raises(AssertionError):
            patch.setitem(LOSSES, "relative_order", of_one_layer(*places))
            check(lab, {})
    with monkeypatch.context() as patch, pytest.raises(AssertionError):
        patch.setattr(order, "opinion", lead)  # distances are added up instead of votes
        check(lab, {})


def test_the_order_of_teachers_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = small(tmp_path)
    check_the_order_of_teachers_says_nothing(lab, {})
    monkeypatch.setitem(LOSSES, "ordered", LOSSES["relative_order"])
    for places in [(0,), (0, 1)]:
        with monkeypatch.context() as patch, pytest.raises(AssertionError):
            patch.setitem(LOSSES, "relative_order", of_one_layer(*places))
            check_the_order_of_teachers_says_nothing(lab, {})


# 4: what the vote alone teaches


def alone(terms: Sequence[str]) -> dict[str, Any]:
    return {"phases.1.terms": [*terms], "controls": ["shuffled"]}


def vote(layers: str, weight: float = 1.0) -> dict[str, Any]:
    return alone([f"relative_order(student.hidden[0], {layers}, margin=0.2) * {weight}"])


WRONG = {
    "permuted": vote(", ".join(f"shuffled({layer})" for layer in LAYERS.split(", "))),
    "hint": alone(["l2(adapt(student.hidden[0], width=64), dwell.hidden[0])"]),
    "answers": alone([f"soft(student.logit, mean({LOGITS}, of='probability', temperature=3), temperature=3)"]),
}


def agreement(lab: Lab, overrides: Mapping[str, Any], seed: int = 0) -> float:
    """The share of the vote's decisions between test rows that the student's layer shares."""
    answers = lab.answers(lab.fit(overrides, seed=seed), "test", overrides)
    own_BH, layers = F.normalize(answers["student"].hidden[0], dim=1), [answers[name].hidden[0] for name in TEACHERS]
    votes = torch.stack([torch.stack([opinion(layer, n) for layer in layers]).sum(0).sign() for n in range(10)])
    own = torch.stack([opinion(own_BH, n) for n in range(10)])
    return float((votes == own)[votes != 0].float().mean())


def taught(folder: Path, seed: int) -> Lab:
    train = {
        "batch": 256,
        "table_std": 0.2,
        "tables": {"rowwise_adagrad": {"lr": 0.1}},
        "dense": {"adam": {"lr": 0.003}},
        "stop": {"every": 1000, "keep": "last"},
    }
    lab = shop(folder, seed, (4000, 200, 1000), {"train": train})
    for phase, steps in zip(lab.raw["phases"], (60, 150), strict=True):
        phase.pop("epochs")
        phase["steps"] = steps
    return lab


def check_the_student_comes_to_agree(before: float, after: float) -> None:
    """From one half to more than 0.8, as in the handbook.

    Over 20 logs from .527 (sd .014, .498 to .554) to .926 (sd .005, .917 to .936); to .515 (most .549) by permuted
    layers, .753 (most .779) by a hint and .681 (most .735) by answers.
    """
    assert abs(before - 0.5) < 0.1
    assert after > 0.8


def test_by_the_vote_alone_a_student_comes_to_agree(tmp_path: Path) -> None:
    lab = taught(tmp_path, 0)
    check_the_student_comes_to_agree(agreement(lab, vote(LAYERS, 0)), agreement(lab, vote(LAYERS)))


@pytest.mark.signature
def test_by_the_vote_alone_a_student_comes_to_agree_over_seeds(tmp_path: Path) -> None:
    for seed in range(6):
        lab = taught(tmp_path, seed)
        before = agreement(lab, vote(LAYERS, 0), seed)
        check_the_student_comes_to_agree(before, agreement(lab, vote(LAYERS), seed))
        for wrong in WRONG.values():
            with pytest.raises(AssertionError):
                check_the_student_comes_to_agree(before, agreement(lab, wrong, seed))
