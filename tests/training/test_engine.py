"""The training loop: what moves, what stays, and what it equals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from recdistill.distill.schedule import Now
from recdistill.errors import SpecError, TrainingError, VisibilityError
from recdistill.training import checkpoint
from recdistill.training.audit import audit
from recdistill.training.engine import Engine
from recdistill.training.fit import build_cast
from recdistill.training.play import play
from recdistill.training.reading import reader_of
from tests.conftest import Small

TWO_PHASES = {
    "members.teacher.share": {},
    "phases": [
        {"steps": 3, "terms": ["bce(teacher.logit, label)"], "stop": {"keep": "last"}},
        {
            "steps": 3,
            "terms": ["bce(student.logit, label)", "soft(student.logit, teacher.logit)"],
            "stop": {"keep": "last"},
        },
    ],
}


def cast_and_engine(small: Small, overrides: dict | None = None, seed: int = 0):
    plan, job, _ = small.plan(overrides)
    cast = build_cast(plan, job.train, small.encoded, seed=seed)
    return plan, cast, Engine(cast, reader_of(plan, small.encoded, ("train",)), None, job.train, seed)


def snapshot(cast, member: str) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in cast.state([member]).items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {key for key in before if not torch.equal(before[key], after[key])}


def test_the_same_seed_twice_gives_the_same_bytes(small: Small, tmp_path: Path) -> None:
    for name in ("a", "b"):
        small.fit(tmp_path / name)
    files = sorted(
        p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file() and p.name != "fit.json"
    )
    assert len(files) == 7  # parameters, layout, metrics, two members on two splits
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_another_seed_gives_other_parameters(small: Small, tmp_path: Path) -> None:
    small.fit(tmp_path / "a")
    small.fit(tmp_path / "b", seed=1)
    first, second = (checkpoint.read(tmp_path / name / "checkpoints" / "final") for name in ("a", "b"))
    assert all(not torch.equal(first[key], second[key]) for key in first if key.endswith("weight"))


def test_a_phase_moves_the_members_that_it_teaches_and_no_other(small: Small, group: None) -> None:
    plan, cast, engine = cast_and_engine(small, TWO_PHASES)
    student, teacher = snapshot(cast, "student"), snapshot(cast, "teacher")
    engine.run(0, plan.phases[0])
    assert moved(student, cast.state(["student"])) == set()
    assert len(moved(teacher, cast.state(["teacher"]))) == len(teacher)
    teacher = snapshot(cast, "teacher")
    engine.run(1, plan.phases[1])
    assert moved(teacher, cast.state(["teacher"])) == set()
    assert len(moved(student, cast.state(["student"]))) == len(student)


def test_a_frozen_teacher_answers_in_evaluation_mode_and_a_trained_one_does_not(small: Small, group: None) -> None:
    _, cast, engine = cast_and_engine(small, {**TWO_PHASES, "members.teacher.dropout": 0.5})
    batch = next(iter(engine.train.in_order(256)))
    for trained, same in ((frozenset(), True), (frozenset({"teacher"}), False)):
        answers = [play(cast, ["teacher"], batch, trained)["teacher"].logits_BK for _ in range(2)]
        assert torch.equal(*answers) is same


def test_evaluation_leaves_no_trace_on_training(small: Small, group: None) -> None:
    results = []
    for every in (1, 1000):
        plan, job, _ = small.plan({"phases.0.stop": {"every": every, "keep": "last"}, "members.teacher.dropout": 0.2})
        cast = build_cast(plan, job.train, small.encoded, seed=0)
        valid = reader_of(plan, small.encoded, ("valid",))
        Engine(cast, reader_of(plan, small.encoded, ("train",)), valid, job.train, 0).run(0, plan.phases[0])
        results.append(snapshot(cast, "student") | snapshot(cast, "teacher"))
    assert moved(*results) == set()


def test_shared_tables_take_one_exact_step_from_all_terms_together(small: Small, group: None) -> None:
    """Against an independent reference: plain embeddings, plain autograd, plain SGD, on the summed loss."""
    overrides = {
        "train.tables": {"sgd": {"lr": 0.5}},
        "train.dense": {"sgd": {"lr": 0.1}},
        "members.student.dropout": 0.0,
    }
    plan, cast, engine = cast_and_engine(small, overrides)
    batch = next(iter(engine.train.in_order(256)))
    rows = {t: s.clone().requires_grad_() for t, s, _ in cast.tables.shards("student")}
    bank = cast.tables.banks["student"]
    looked_up = [rows[f.table][batch.serving.ids((f.column,))[0]] for f in bank.features]
    price = batch.serving.floats(("price",))
    after = batch.privileged.floats(cast.layout.members["teacher"].privileged_floats)
    student = cast.heads["student"](torch.cat([*looked_up, price], 1), [], []).logits_BK[:, 0]
    teacher = cast.heads["teacher"](torch.cat([*looked_up, price, after], 1), [], []).logits_BK[:, 0]
    label = batch.labels["purchase"]
    known = ~label.isnan()
    hard = torch.nn.functional.binary_cross_entropy_with_logits
    target = torch.sigmoid(teacher.detach())
    total = 0.5 * hard(student[known], label[known]) + hard(teacher[known], label[known]) + 0.5 * hard(student, target)
    expected = {
        t: r - 0.5 * g for (t, r), g in zip(rows.items(), torch.autograd.grad(total, list(rows.values())), strict=True)
    }
    engine.step(plan.phases[0], {"log": batch}, Now(5, 12), [[]])
    for table, shard, _ in cast.tables.shards("student"):
        assert torch.allclose(shard, expected[table], atol=1e-7), table


def test_a_term_without_known_labels_moves_nothing_and_is_no_nan(small: Small, group: None) -> None:
    plan, cast, engine = cast_and_engine(
        small, {"phases.0.terms": ["bce(student.logit, label)", "bce(teacher.logit, label)"]}
    )
    batch = next(iter(engine.train.in_order(64)))
    batch.labels["purchase"].fill_(float("nan"))
    before = snapshot(cast, "student")
    losses = engine.step(plan.phases[0], {"log": batch}, Now(0, 12), [[]])
    assert [float(v.detach()) for v in losses.values()] == [0.0, 0.0]
    assert moved(before, cast.state(["student"])) == set()


@pytest.mark.parametrize(
    ("every", "expected"),
    [(1000, r"the term 'bce\(student.logit, label\).*' is nan"), (6, "student: 600 of 600 scores are NaN")],
)
def test_a_diverged_member_stops_the_run_by_name(small: Small, tmp_path: Path, every: int, expected: str) -> None:
    wild = {"train.dense": {"sgd": {"lr": 1e30}}, "train.batch": 64}
    with pytest.raises(TrainingError, match=expected):
        small.fit(tmp_path / "a", {**wild, "phases.0.steps": 60, "phases.0.stop": {"every": every}})


def test_the_best_checkpoint_is_restored_and_patience_ends_a_phase(small: Small, tmp_path: Path) -> None:
    overrides = {
        "phases.0.steps": 400,
        "phases.0.stop": {"every": 10, "patience": 3},
        "train.dense": {"adam": {"lr": 0.05}},
    }
    small.fit(tmp_path / "a", overrides)
    events = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    losses = {e["step"]: e["values"]["student.logloss"] for e in events if e["kind"] == "evaluation"}
    best = min(losses, key=lambda step: losses[step])
    assert json.loads((tmp_path / "a" / "fit.json").read_text())["steps"] == [best]
    assert max(losses) == best + 30 < 400
    from recdistill.data.scores import read_scores
    from recdistill.evaluation import log_loss

    scored = read_scores(tmp_path / "a" / "scores" / "student.valid.parquet")
    assert log_loss(scored.label_N, scored.logit_N) == pytest.approx(losses[best], abs=1e-12)


def test_refit_takes_as_many_epochs_on_more_rows(small: Small, tmp_path: Path) -> None:
    small.fit(tmp_path / "a", {"train.refit": True, "phases.0.steps": 30, "phases.0.stop": {"every": 30}})
    rows = small.encoded.rows
    expected = round(30 * (rows["train"] + rows["valid"]) / rows["train"])
    assert json.loads((tmp_path / "a" / "fit.json").read_text())["steps"] == [expected]
    stages = [json.loads(line)["stage"] for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert stages[0] == "tune" and stages[-1] == "refit"


def test_shared_parameters_are_one_and_plain_students_start_alike(small: Small, group: None) -> None:
    trunks = {"members.student.trunk": [8], "members.teacher.view": "serving", "privileged": []}
    trunks |= {"members.teacher.share": {"tables": "student", "trunk": "student"}, "members.student.dropout": 0.0}
    _, cast, _ = cast_and_engine(small, trunks)
    assert cast.heads["student"].trunk is cast.heads["teacher"].trunk
    assert list(cast.tables.banks) == ["student"]
    plan, job, _ = small.plan(trunks, arm="plain")
    alone = build_cast(plan, job.train, small.encoded, seed=0)
    assert moved(snapshot(cast, "student"), alone.state(["student"])) == set()


def test_columns_named_in_own_keep_their_tables_apart(small: Small, group: None) -> None:
    _, cast, _ = cast_and_engine(small, {"members.teacher.share": {"tables": "student", "own": ["user_id"]}})
    assert list(cast.tables.banks["teacher"].tables) == ["user_id"]
    assert "user_id" in cast.tables.banks["student"].tables


def test_training_a_member_on_which_a_frozen_one_rests_is_refused(small: Small) -> None:
    two = {**TWO_PHASES, "members.teacher.share": {"tables": "student"}}
    with pytest.raises(SpecError, match="trains 'student', whose tables the frozen 'teacher' uses as well"):
        small.plan(two)


def test_lower_precision_moves_training_a_little_and_scores_stay_exact(small: Small, group: None) -> None:
    states = []
    for precision in ("float32", "bfloat16"):
        plan, cast, engine = cast_and_engine(small, {"train.precision": precision, "members.student.dropout": 0.0})
        batch = next(iter(engine.train.in_order(256)))
        scores, _, _ = engine.score(["student"], engine.train)
        states.append((scores["student"], audit(cast, plan.phases[0], batch)[0].dense["student.net.out.weight"]))
    (exact_scores, exact), (same_scores, rounded) = states
    assert np.array_equal(exact_scores, same_scores)
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    assert torch.allclose(exact, rounded, rtol=0.05, atol=1e-3)


def test_a_serving_member_wired_to_a_post_event_column_is_refused(small: Small, group: None) -> None:
    from dataclasses import replace

    plan, job, _ = small.plan()
    leaky = tuple(replace(m, privileged=("dwell_ms",)) if m.serve else m for m in plan.members)
    with pytest.raises(VisibilityError, match="serves, but reads \\['dwell_ms'\\]"):
        build_cast(replace(plan, members=leaky), job.train, small.encoded, seed=0)


def test_a_serving_member_never_receives_the_privileged_view(small: Small, group: None) -> None:
    """The guard at the batch: even a forged layout finds no privileged view to read from."""
    from dataclasses import replace

    _, cast, engine = cast_and_engine(small)
    forged = replace(cast.layout.members["student"], privileged_floats=("dwell_ms",))
    cast.layout.members["student"] = forged
    batch = next(iter(engine.train.in_order(32)))
    assert batch.privileged is not None
    with pytest.raises(VisibilityError, match="no privileged view"):
        play(cast, ["student"], batch)["student"]


def test_the_audit_leaves_everything_in_place_and_sums_to_the_step(small: Small, group: None) -> None:
    plan, cast, engine = cast_and_engine(small, {"train.tables": {"sgd": {"lr": 1.0}}, "members.student.dropout": 0.0})
    batch = next(iter(engine.train.in_order(128)))
    before = snapshot(cast, "student")
    found = audit(cast, plan.phases[0], batch, step=6, planned=12)
    assert moved(before, cast.state(["student"])) == set()
    assert [entry.weight for entry in found] == [0.5, 1, 0.5]
    assert [entry.reaches("teacher") for entry in found] == [False, True, False]
    leaf = sum(entry.tables["student"] for entry in found)
    lookup = cast.tables.look_up("student", batch, train=True)
    lookup.leaf_BW.grad = leaf.clone()
    lookup.push()
    pushed = snapshot(cast, "student")
    _, again, other = cast_and_engine(small, {"train.tables": {"sgd": {"lr": 1.0}}, "members.student.dropout": 0.0})
    other.step(plan.phases[0], {"log": batch}, Now(6, 12), [[]])
    for key in (k for k in pushed if k.startswith("tables.")):
        assert torch.allclose(pushed[key], again.state(["student"])[key], atol=1e-6)
