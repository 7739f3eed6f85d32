"""O5, the native ensemble: branches on one trunk, and a gate that mixes them into the teacher of each.

1. The teacher is the gate's mean of all branches: its weights are not negative, add up to 1 and differ between rows.
2. The gate reads what all branches have in common, and learns from labels alone; what the teacher says moves the branch
   that hears it, and no other branch and not the gate.
3. Branches that say the same teach each other nothing. A single branch, which would be its own teacher and learn
   nothing either, is refused: its gate would have nothing to weigh.
4. There is one trunk and one set of tables, and what serves is as large as a plain net.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recdistill.data.batch import Batch
from recdistill.distill.learned import Gated
from recdistill.distill.signal import Scene, walk
from recdistill.errors import SpecError
from recdistill.nets.inputs import Outputs
from recdistill.training.audit import Audit
from recdistill.training.cast import Cast
from recdistill.training.fit import build_cast
from recdistill.training.sharding import process_group
from tests.signatures.lab import Lab, answering
from tests.signatures.traces import states
from tests.signatures.worlds import fields

ROW = "online/native_ensemble"
BRANCHES = ("branch_0", "branch_1", "branch_2")
TEMPERATURE = 3.0
GATE = "gate(branch[:].logit, by=branch[0].hidden[0])"
LATE = 500  # of a thousand steps: the weight has risen
LABELS = "bce(branch[:].logit, label)"


def taught_by(target: str, *, temperature: str = ", temperature=3", learner: str = "branch[:]") -> str:
    return f"soft({learner}.logit, {target}{temperature}) * gaussian(0, 1, over=0.25)"


def mixed(target: str) -> dict[str, Any]:
    return {"phases.0.terms": [LABELS, f"bce({target}, label)", taught_by(target)]}


UNIFORM = mixed("mean(branch[:].logit)")
OWN_LAYER = mixed(GATE.replace("hidden[0]", "hidden[1]"))
LIVE = {"phases.0.terms.2": taught_by(f"live({GATE})")}
ONE_UNTAUGHT = {
    "phases.0.terms": [LABELS, f"bce({GATE}, label)", *(taught_by(GATE, learner=f"branch[{k}]") for k in (1, 2))]
}
TRUNKS_APART = {"members.branch.share": {"tables": "branch"}, **mixed(GATE)}
TABLES_APART = {"members.branch.share": {"trunk": "branch"}}


def small(folder: Path) -> Lab:
    """The row's own nets on a few rows; wide initial tables, so that the branches differ."""
    return fields(0, (256, 64, 64)).lab(folder, ROW, {"train.batch": 64, "train.table_std": 1.0})


def the_gate(lab: Lab, overrides: Mapping[str, Any]) -> Gated:
    terms = lab.plan(overrides)[0].phases[0].terms
    gates = {part for term in terms for part in walk(term) if isinstance(part, Gated)}
    assert len(gates) == 1, "there is not one gate"
    return gates.pop()


def audited(lab: Lab, overrides: Mapping[str, Any]) -> tuple[list[Audit], Cast]:
    return lab.audit(overrides, step=LATE)


def reached(found: Audit) -> set[str]:
    """The parts that a term moves: the trunk, branches above it, and whoever else."""
    names = (name.split(".") for name, gradient in found.dense.items() if gradient.any())
    return {"trunk" if parts[1] == "trunk" else parts[0] for parts in names}


# 1: the teacher


def check_gate_weighs_row_by_row(lab: Lab, overrides: Mapping[str, Any]) -> None:
    gate, scene = the_gate(lab, overrides), Scene(lab.outputs(overrides), lab.batch())
    weight_BK = gate.weights(scene)
    logit_BK = torch.stack([scene.outputs[name].logits_BK[:, 0] for name in BRANCHES], 1)
    assert weight_BK.shape == logit_BK.shape
    assert bool((weight_BK >= 0).all())
    torch.testing.assert_close(weight_BK.sum(1), torch.ones(len(weight_BK)), rtol=0, atol=1e-6)
    assert float(weight_BK.std(0).min()) > 1e-3, "all rows are weighed alike"
    torch.testing.assert_close(gate.value(scene), (weight_BK * logit_BK).sum(1))


def check_gate_reads_what_all_share(lab: Lab, overrides: Mapping[str, Any]) -> None:
    """Whichever branch it is read off."""
    outputs, batch = lab.outputs(overrides), lab.batch()
    by = the_gate(lab, overrides).by
    read = [by.value(Scene({"branch_0": outputs[name]}, batch)) for name in BRANCHES]
    assert read[0].any()
    for other in read[1:]:
        assert torch.equal(read[0], other), "it reads what belongs to one branch"


def sigmoids(gate: Gated, scene: Scene) -> Tensor:
    return torch.sigmoid(scene.outputs[gate.member].logits_BK)


def alike(gate: Gated, scene: Scene) -> Tensor:
    return torch.full_like(scene.outputs[gate.member].logits_BK, 1 / len(BRANCHES))


def test_the_gate_weighs_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = small(tmp_path)
    check_gate_weighs_row_by_row(lab, {})
    with pytest.raises(AssertionError):
        check_gate_weighs_row_by_row(lab, UNIFORM)
    for wrong in (sigmoids, alike):
        monkeypatch.setattr(Gated, "weights", wrong)
        with pytest.raises(AssertionError):
            check_gate_weighs_row_by_row(lab, {})


def test_the_gate_reads_what_all_branches_share(tmp_path: Path) -> None:
    lab = small(tmp_path)
    check_gate_reads_what_all_share(lab, {})
    for wrong in (OWN_LAYER, TRUNKS_APART):
        with pytest.raises(AssertionError):
            check_gate_reads_what_all_share(lab, wrong)


# 2: who learns from what


def check_only_labels_teach_the_gate(lab: Lab, overrides: Mapping[str, Any]) -> None:
    audits, _ = audited(lab, overrides)
    gates = {member for found in audits for member in reached(found)} - {"trunk", *BRANCHES}
    assert len(gates) == 1, "nobody weighs the branches"
    mixture = next(found for found in audits if found.words.startswith("bce(gate"))
    assert reached(mixture) == {"trunk", *BRANCHES, *gates}
    hints = [found for found in audits if found.words.startswith("soft(")]
    assert [reached(found) for found in hints] == [{"trunk", name} for name in BRANCHES]
    for found in hints:
        assert not any(name.startswith(tuple(gates)) for name in found.dense), "the gate is reached"


def check_each_branch_moves_towards_the_mixture(lab: Lab, overrides: Mapping[str, Any]) -> None:
    """On the output's bias: T (sigmoid(z / T) - sigmoid(e / T)), and g (sigmoid(e) - y) for the mixture's own loss."""
    audits, _ = audited(lab, overrides)
    scene = Scene(lab.outputs(overrides), lab.batch())
    gate = the_gate(lab, overrides)
    mixture_B, weight_BK, label_B = gate.value(scene), gate.weights(scene), scene.batch.labels["y"]
    of_labels = next(found for found in audits if found.words.startswith("bce(gate"))
    hints = [found for found in audits if found.words.startswith("soft(")]
    assert len(hints) == len(BRANCHES), "a branch is not taught"
    for k, (name, hint) in enumerate(zip(BRANCHES, hints, strict=True)):
        logit_B = scene.outputs[name].logits_BK[:, 0]
        apart_B = TEMPERATURE * (torch.sigmoid(logit_B / TEMPERATURE) - torch.sigmoid(mixture_B / TEMPERATURE))
        torch.testing.assert_close(hint.dense[f"{name}.net.out.bias"][0], apart_B.mean(), rtol=1e-3, atol=1e-6)
        wrong_B = weight_BK[:, k] * (torch.sigmoid(mixture_B) - label_B)
        torch.testing.assert_close(of_labels.dense[f"{name}.net.out.bias"][0], wrong_B.mean(), rtol=1e-3, atol=1e-6)


def test_only_labels_teach_the_gate(tmp_path: Path) -> None:
    lab = small(tmp_path)
    check_only_labels_teach_the_gate(lab, {})
    for wrong in (LIVE, ONE_UNTAUGHT, UNIFORM):
        with pytest.raises(AssertionError):
            check_only_labels_teach_the_gate(lab, wrong)


def test_each_branch_moves_towards_the_mixture(tmp_path: Path) -> None:
    lab = small(tmp_path)
    check_each_branch_moves_towards_the_mixture(lab, {})
    for wrong in (
        {"phases.0.terms.2": taught_by(GATE, temperature="")},
        {"phases.0.terms.2": taught_by("mean(branch[:].logit)")},
        {"phases.0.terms.2": f"{taught_by(GATE)} * 0.3333"},
        ONE_UNTAUGHT,
    ):
        with pytest.raises(AssertionError):
            check_each_branch_moves_towards_the_mixture(lab, wrong)


# 3: nothing to teach


def check_branches_that_agree_teach_nothing(lab: Lab) -> None:
    def agreeing(name: str, found: Outputs, _: Batch) -> Outputs:
        if name not in BRANCHES:
            return found
        logits_BK = found.logits_BK - found.logits_BK.detach() + 1.5  # the gradient goes on to the branch
        return Outputs(logits_BK, found.hidden, found.embed_BE, found.attention)

    with answering(agreeing):
        audits, _ = audited(lab, {})
    for found in audits:
        size = max(float(gradient.abs().max()) for gradient in (*found.dense.values(), *found.tables.values()))
        assert (size < 1e-6) == found.words.startswith("soft("), found.words


def test_branches_that_agree_teach_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = small(tmp_path)
    check_branches_that_agree_teach_nothing(lab)
    monkeypatch.setattr(Gated, "weights", sigmoids)
    with pytest.raises(AssertionError):
        check_branches_that_agree_teach_nothing(lab)


def test_a_single_branch_is_refused(tmp_path: Path) -> None:
    lab = small(tmp_path)
    with pytest.raises(SpecError, match="gate: weighs signals against each other, so it takes at least two; found 1"):
        lab.job({"members.branch.copies": 1, "members.branch.share": {}})
    assert len(lab.plan({"members.branch.copies": 2})[0].phases[0].terms) == 5  # of the mixture, and two of each branch


# 4: one trunk


def built(lab: Lab, overrides: Mapping[str, Any], arm: str) -> Cast:
    plan, job, log, _ = lab.plan(overrides, arm)
    with process_group():
        return build_cast(plan, job.train, log, seed=0)


def check_one_trunk_carries_all(lab: Lab, overrides: Mapping[str, Any]) -> None:
    cast, plain = built(lab, overrides, "main"), built(lab, overrides, "plain")
    (alone,) = states(plain).values()
    ours = states(cast)[BRANCHES[0]]
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in alone.items()}
    whole = {id(p): p for name in BRANCHES for p in cast.heads[name].parameters()}
    first = list(cast.heads[BRANCHES[0]].parameters())
    upper = list(cast.heads[BRANCHES[0]].net.parameters())
    assert len(whole) == len(first) + 2 * len(upper), "the trunk is there more than once"
    assert cast.banks_of(BRANCHES) == {BRANCHES[0]}, "the tables are there more than once"


def test_one_trunk_carries_all_branches(tmp_path: Path) -> None:
    lab = small(tmp_path)
    check_one_trunk_carries_all(lab, {})
    for wrong in (TRUNKS_APART, TABLES_APART):
        with pytest.raises(AssertionError):
            check_one_trunk_carries_all(lab, wrong)
