"""Members that follow others: what they are after each step, evaluation and phase, and that nothing else moves them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from recdistill.distill.schedule import Now
from recdistill.errors import TrainingError
from recdistill.training import watch
from tests.conftest import Small
from tests.signatures.traces import carried
from tests.training.bench import BCE, LAST, OTHER, STUDENT, Bench, distance, problems, same

SOFT = "soft(student.logit, copy.logit)"


def bench(small: Small, origin: dict[str, Any], **phase: Any) -> Bench:
    members = {"student": STUDENT, "copy": origin}
    return Bench.of(small, members, [{"steps": 8, "terms": [BCE, SOFT], **LAST, **phase}])


def test_a_moving_average_is_the_recursion(small: Small, group: None) -> None:
    b = bench(small, {"ema": {"of": "student", "decay": 0.8}})
    expected = None
    for step in range(4):
        b.step(at=Now(step, 8))
        b.engine.followers.step_taken(step + 1, 8, b.plan.phases[0])
        now = b.state("student")
        expected = now if expected is None else {k: 0.8 * v + 0.2 * now[k] for k, v in expected.items()}
        assert distance(b.state("copy"), expected) < 1e-6
    assert distance(b.state("copy"), b.state("student")) > 1e-4


def test_an_average_taken_seldom_decays_as_much(small: Small, group: None) -> None:
    b = bench(small, {"ema": {"of": "student", "decay": 0.8, "every": 2}})
    b.step()
    for step in (2, 4):
        before = b.state("copy")
        b.engine.followers.step_taken(step, 8, b.plan.phases[0])
        b.step(at=Now(step, 8))
        b.engine.followers.step_taken(step + 1, 8, b.plan.phases[0])
        if step == 4:
            assert not same(b.state("copy"), before)
    share = 0.8**2
    b = bench(small, {"ema": {"of": "student", "decay": 0.8, "every": 2}})
    b.engine.followers.step_taken(2, 8, b.plan.phases[0])
    first = b.state("student")
    b.step()
    b.engine.followers.step_taken(4, 8, b.plan.phases[0])
    expected = {k: share * v + (1 - share) * b.state("student")[k] for k, v in first.items()}
    assert distance(b.state("copy"), expected) < 1e-6


def test_a_snapshot_stands_still_between_its_moments(small: Small, group: None) -> None:
    b = bench(small, {"snapshot": {"of": "student", "every": 0.5}})
    assert b.engine.followers.silent == {"copy"}
    assert list(b.step()) == [BCE]  # it knows nothing yet, so its term is left out
    for step in range(1, 8):
        b.engine.followers.step_taken(step, 8, b.plan.phases[0])
        if step == 4:
            taken = b.state("student")
        b.step(at=Now(step, 8))
        if step >= 4:
            assert same(b.state("copy"), taken), step
    assert not same(b.state("student"), taken)


def test_a_snapshot_is_taken_where_a_stretch_begins_and_not_where_a_phase_ends(small: Small, group: None) -> None:
    """Who was taught last by it is reported beside it; a later phase begins with what its original is by then."""
    phases = [{"steps": 8, "terms": [BCE, SOFT], **LAST}] * 2 + [
        {"steps": 8, "terms": ["bce(other.logit, label)"], **LAST}
    ]
    members = {"student": STUDENT, "copy": {"snapshot": {"of": "student", "every": 0.5}}, "other": OTHER}
    b = Bench.of(small, members, phases)
    b.engine.run(0, b.plan.phases[0])
    half, end = b.state("copy"), b.state("student")
    assert not same(half, end)
    b.engine._begin(1, b.plan.phases[1])
    assert same(b.state("copy"), end)
    b.engine.run(1, b.plan.phases[1])
    later = b.state("copy")
    assert not same(later, end) and not same(later, b.state("student"))
    b.engine._begin(2, b.plan.phases[2])
    assert same(b.state("copy"), later)  # its original does not move


def test_a_previous_copy_is_what_the_member_was_when_the_phase_began(small: Small, group: None) -> None:
    phases = [
        {"steps": 2, "terms": [BCE], **LAST},
        {"steps": 2, "repeat": 2, "restart": "student", "terms": [BCE, SOFT], **LAST},
    ]
    b = Bench.of(small, {"student": STUDENT, "copy": {"previous": "student"}}, phases)
    first = b.state("student")
    b.engine.run(0, b.plan.phases[0])
    ends = [b.state("student")]
    for index in (1, 2):
        b.engine._begin(index, b.plan.phases[index])
        assert same(b.state("copy"), ends[-1])
        anew = b.state("student")
        assert not carried(ends[-1], anew) and not carried(first, anew)
        b.engine.run(index, b.plan.phases[index])
        ends.append(b.state("student"))
    assert b.engine.generations == {"student": 4}  # begun anew twice above, and twice by the phases themselves


def test_every_generation_begins_elsewhere_and_its_optimizers_remember_nothing(small: Small, group: None) -> None:
    adagrad = {"tables": {"rowwise_adagrad": {"lr": 0.05}}}
    b = Bench.of(
        small, {"student": STUDENT}, [{"steps": 2, "restart": "student", "terms": [BCE], **LAST}], train=adagrad
    )
    b.step()
    assert any(bool(value.any()) for value in b.cast.tables.optimizer_state().values())
    starts = []
    for index in range(3):
        b.engine._begin(index, b.plan.phases[0])
        starts.append(b.state("student"))
        assert not any(bool(value.any()) for value in b.cast.tables.optimizer_state().values())
    assert not carried(starts[0], starts[1]) and not carried(starts[1], starts[2])
    spreads = [float(start["tables.student.user_id"][2:].std()) for start in starts]
    assert all(0.08 < spread < 0.12 for spread in spreads)  # drawn as at first, with table_std 0.1


def test_the_best_copy_follows_the_best_evaluations(small: Small, group: None) -> None:
    b = bench(small, {"best": {"of": "student", "average": 2}})
    followers, states = b.engine.followers, []
    # The third is the second best, but no new best; the fourth is one, and by then they are the best two.
    for loss, (i, j) in ((0.6, (0, 0)), (0.5, (0, 1)), (0.55, (0, 1)), (0.4, (1, 3))):
        b.step()
        states.append(b.state("student"))
        followers.evaluated({"student.logloss": loss}, "logloss", {"student"})
        mean = {k: (states[i][k] + states[j][k]) / 2 for k in states[0]}
        assert distance(b.state("copy"), mean) < 1e-7, loss
    before = b.state("copy")
    followers.evaluated({"student.logloss": 0.3}, "logloss", {"somebody else"})
    assert same(b.state("copy"), before)


@pytest.mark.parametrize("average", [1, 3])
def test_the_best_copy_stays_when_its_original_returns(
    small: Small, group: None, monkeypatch: pytest.MonkeyPatch, average: int
) -> None:
    """The second evaluation is the last new best, so the student ends there; the copy is the mean of the best then."""
    losses = [0.5, 0.3, 0.4, 0.45]
    seen: list[dict[str, torch.Tensor]] = []
    b = bench(small, {"best": {"of": "student", "average": average}}, stop={"every": 2, "keep": "best"})

    def evaluate(*_: Any) -> dict[str, float]:
        seen.append(b.state("student"))
        return {"student.logloss": losses[len(seen) - 1], "copy.logloss": 1.0}

    monkeypatch.setattr(watch, "evaluate", evaluate)
    assert b.engine.run(0, b.plan.phases[0]) == 4
    assert same(b.state("student"), seen[1])
    chosen = seen[:2] if average == 3 else seen[1:2]
    expected = {key: torch.stack([each[key] for each in chosen]).mean(0) for key in seen[0]}
    assert distance(b.state("copy"), expected) < 1e-6
    assert average == 1 or distance(b.state("copy"), b.state("student")) > 1e-4


def test_by_auc_the_best_is_the_highest(small: Small, group: None) -> None:
    b = bench(small, {"best": "student"})
    for area in (0.7, 0.6):
        b.step()
        kept = b.state("student") if area == 0.7 else kept  # noqa: F821
        b.engine.followers.evaluated({"student.auc": area}, "auc", {"student"})
    assert same(b.state("copy"), kept)


def test_nothing_trains_a_follower(small: Small, group: None) -> None:
    b = bench(small, {"ema": {"of": "student", "decay": 0.5}})
    assert b.plan.phases[0].trained == {"student"}
    members, terms = {"student": STUDENT, "copy": {"ema": "student"}}, [BCE, "bce(copy.logit, label)"]
    assert problems(small, members, [{"steps": 2, "terms": terms}]) == [
        "phases.0: 'bce(copy.logit, label)' teaches ['copy'], none of whom moves in this update; add them to `train`, "
        "or read them through live(...)"
    ]


@pytest.mark.parametrize("origin", [{"ema": {"of": "student"}}, {"best": "student"}])
def test_a_follower_can_serve(small: Small, group: None, tmp_path: Path, origin: dict[str, Any]) -> None:
    members = {"student": {**STUDENT, "serve": False}, "copy": {**origin, "serve": True}}
    phases = [{"steps": 6, "terms": [BCE], "stop": {"every": 2}}]
    b = Bench.of(small, members, phases)
    b.fit(tmp_path / "fit")
    events = [json.loads(line) for line in (tmp_path / "fit" / "metrics.jsonl").read_text().splitlines()]
    assert all("copy.logloss" in event["values"] for event in events if event["kind"] == "evaluation")
    assert (tmp_path / "fit" / "scores" / "copy.test.parquet").exists()


def test_followers_of_followers_and_of_nobody_are_refused(small: Small) -> None:
    for origin, message in (
        ({"ema": "nobody"}, "members.copy.ema: no member 'nobody'"),
        ({"best": "copy"}, "members.copy.best: 'copy' has no parameters of its own"),
        ({"snapshot": {"of": "student", "every": 0}}, "members.copy.snapshot.every"),
        ({"ema": "student", "best": "student"}, "has two origins, ema and best; keep one"),
        ({"ema": "student", "net": {"mlp": [4]}}, "takes its net from ema; remove `net`"),
    ):
        found = problems(small, {"student": STUDENT, "copy": origin}, [{"steps": 2, "terms": [BCE]}])
        assert any(message in problem for problem in found), (message, found)


def test_a_copy_of_a_member_on_borrowed_tables_has_all_of_them(small: Small, group: None) -> None:
    members = {
        "student": STUDENT,
        "booster": {
            **STUDENT, "serve": False, "view": ["serving", "privileged"],
            "share": {"tables": "student", "own": ["city"]},
        },
        "copy": {"ema": {"of": "booster", "decay": 0.5}},
    }  # fmt: skip
    phases = [{"steps": 2, "terms": [BCE, "bce(booster.logit, label)", "soft(student.logit, copy.logit)"], **LAST}]
    b = Bench.of(small, members, phases, privileged=["dwell_ms"])
    b.step()
    b.engine.followers.step_taken(1, 2, b.plan.phases[0])
    from recdistill.training.play import play

    batch = b.batch()
    played = play(b.cast, ["booster", "copy"], batch)
    assert torch.equal(played["booster"].logits_BK, played["copy"].logits_BK)


def test_a_member_that_is_taught_by_its_second_name_is_followed_and_validated(
    small: Small, group: None, tmp_path: Path
) -> None:
    members = {
        "student": STUDENT, "noisy": {"same": "student", "distort": {"mask": 0.2}},
        "late": {"ema": {"of": "student", "decay": 0.5}}, "best": {"best": "student"},
    }  # fmt: skip
    terms = ["bce(noisy.logit, label)", "soft(noisy.logit, late.logit)"]
    b = Bench.of(small, members, [{"steps": 40, "terms": terms, "stop": {"every": 2, "patience": 1}}], train=WILD)
    b.fit(tmp_path / "fit")
    events = [json.loads(line) for line in (tmp_path / "fit" / "metrics.jsonl").read_text().splitlines()]
    losses = {e["step"]: e["values"]["student.logloss"] for e in events if e["kind"] == "evaluation"}
    best = min(losses, key=lambda step: losses[step])
    assert json.loads((tmp_path / "fit" / "fit.json").read_text())["kept"] == [best]
    assert max(losses) == best + 2 < 40  # stopped by patience
    b.engine.run(0, b.plan.phases[0])
    assert b.engine.followers.ready == {"late", "best"}
    assert same(b.state("best"), b.state("student"))


WILD = {"dense": {"sgd": {"lr": 3.0}}, "tables": {"sgd": {"lr": 30.0}}}


@pytest.mark.parametrize("origin", [{"snapshot": {"of": "student", "every": 1000}}, {"previous": "student"}])
def test_a_copy_that_has_copied_nothing_does_not_serve(
    small: Small, group: None, tmp_path: Path, origin: dict[str, Any]
) -> None:
    members = {"student": {**STUDENT, "serve": False}, "copy": {**origin, "serve": True}}
    b = Bench.of(small, members, [{"steps": 4, "terms": [BCE], **LAST}])
    with pytest.raises(TrainingError, match=r"members\.copy: serves, but has copied nothing from 'student'"):
        b.fit(tmp_path / "fit")
    assert not (tmp_path / "fit" / "checkpoints" / "final").exists()


def test_the_best_evaluation_is_none_where_validation_rows_are_trained_on(small: Small) -> None:
    members = {"student": {**STUDENT, "serve": False}, "copy": {"best": "student", "serve": True}}
    found = problems(small, members, [{"steps": 4, "terms": [BCE]}], train={"refit": True})
    assert found == ["phases.0: 'copy' follows the best evaluation, of which there is none; remove train.refit"]
    idle = {**members, "other": {**STUDENT, "serve": False}}
    phases = [{"steps": 4, "terms": [BCE]}, {"steps": 4, "terms": ["soft(other.logit, copy.logit)"]}]
    assert len(problems(small, idle, phases, train={"refit": True})) == 1  # where it follows, not where it teaches


@pytest.mark.parametrize(("keep", "kept"), [("last", 5), ("best", 2)])
def test_a_phase_that_stops_early_says_how_many_steps_it_has_taken(
    small: Small, group: None, keep: str, kept: int
) -> None:
    """The steps behind what is kept, which `refit` repeats, and not those that were planned."""
    stop = {"every": 1, "patience": 3, "keep": keep, "monitor": "logloss"}
    b = Bench.of(small, {"student": STUDENT}, [{"steps": 40, "terms": [BCE], "stop": stop}])
    losses = iter([0.6, 0.5, 0.7, 0.7, 0.7, 0.7])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "evaluate", lambda *_: {"student.logloss": next(losses)})
        assert b.engine.run(0, b.plan.phases[0]) == kept
