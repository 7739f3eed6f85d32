"""Several moves in a step: who moves, what gradients pass through, and who owns a table."""

from pathlib import Path
from typing import Any

import pytest
import torch

from recdistill.data.encode import encode
from recdistill.distill.schedule import Now
from recdistill.errors import TrainingError
from recdistill.spec.load import load_feature_spec
from recdistill.training.audit import audit
from recdistill.training.play import play
from tests.conftest import Small
from tests.training.bench import BCE, LAST, OTHER, STUDENT, Bench, problems, same

CRITIC: dict[str, Any] = {"net": {"mlp": [4]}, "view": [], "inputs": ["live(student.hidden[-1])"], "outputs": 1}
GENERATOR: dict[str, Any] = {"net": {"mlp": [8]}, "view": [], "inputs": ["noise(4)"], "outputs": 33}


def moved(b: Bench, phase: int = 0, at: Now | None = None) -> set[str]:
    """The members (and banks) that a step changes."""
    before = {name: b.state(name) for name in b.cast.heads}
    b.step(phase, at=at)
    found = set()
    for name, state in before.items():
        after = b.state(name)
        found |= {
            key.rpartition(".")[0] if key.startswith("tables") else name
            for key in state
            if not torch.equal(state[key], after[key])
        }
    return found


def test_an_update_moves_whom_it_names_and_gradients_pass_through_the_others(small: Small, group: None) -> None:
    fool = {"train": "student", "terms": [BCE, "bce(critic.logit, click)"]}
    tell = {"train": "critic", "terms": ["bce(critic.logit, click)"]}
    members = {"student": STUDENT, "critic": CRITIC}
    assert moved(Bench.of(small, members, [{"steps": 2, "updates": [tell], **LAST}, {"steps": 1, "terms": [BCE]}])) == {
        "critic"
    }
    b = Bench.of(small, members, [{"steps": 2, "updates": [tell, fool], **LAST}])
    hidden = play(b.cast, ["student"], b.batch())["student"].hidden[-1]
    assert moved(b) == {"critic", "student", "tables.student"}
    alone = Bench.of(small, members, [{"steps": 2, "updates": [tell, {**fool, "terms": [BCE]}], **LAST}])
    alone.step()
    assert not same(alone.state("student"), b.state("student"))  # the critic's term has reached the student
    assert same(alone.state("critic"), b.state("critic")) and hidden.requires_grad is False


def test_without_live_an_input_is_the_end_of_the_gradient(small: Small, group: None) -> None:
    members = {"student": STUDENT, "critic": {**CRITIC, "inputs": ["student.hidden[-1]"]}}
    b = Bench.of(small, members, [{"steps": 2, "terms": [BCE, "bce(critic.logit, click)"], **LAST}])
    found = {entry.words: entry for entry in audit(b.cast, b.plan.phases[0], b.batch())}
    assert not found["bce(critic.logit, click)"].reaches("student") and not found["bce(critic.logit, click)"].tables
    live = Bench.of(
        small, {**members, "critic": CRITIC}, [{"steps": 2, "terms": [BCE, "bce(critic.logit, click)"], **LAST}]
    )
    found = {entry.words: entry for entry in audit(live.cast, live.plan.phases[0], live.batch())}
    assert found["bce(critic.logit, click)"].reaches("student") and found["bce(critic.logit, click)"].tables


def test_a_reversed_input_teaches_the_opposite(small: Small, group: None) -> None:
    gradients = []
    for word in ("live(student.hidden[-1])", "reverse(student.hidden[-1])"):
        members = {"student": STUDENT, "critic": {**CRITIC, "inputs": [word]}}
        b = Bench.of(small, members, [{"steps": 2, "terms": [BCE, "bce(critic.logit, click)"], **LAST}])
        entry = audit(b.cast, b.plan.phases[0], b.batch())[1]
        gradients.append(entry)
    same_way, turned = (entry.dense["student.net.stack.blocks.0.0.weight"] for entry in gradients)
    assert torch.equal(same_way, -turned) and bool(same_way.any())
    assert torch.equal(*(entry.dense["critic.net.out.weight"] for entry in gradients))


def test_updates_take_place_as_often_as_they_say(small: Small, group: None) -> None:
    updates = [
        {"train": "critic", "terms": ["bce(critic.logit, click)"]},
        {"train": "student", "terms": [BCE], "every": 3},
    ]
    b = Bench.of(small, {"student": STUDENT, "critic": CRITIC}, [{"steps": 7, "updates": updates, **LAST}])
    assert [("student" in moved(b, at=Now(step, 7)), True) for step in range(7)] == [
        (step % 3 == 0, True) for step in range(7)
    ]


def test_equal_terms_of_two_updates_are_both_told_and_both_watched(small: Small, group: None) -> None:
    updates = [{"terms": [BCE], "train": "student.tables"}, {"terms": [BCE], "train": "student.net"}]
    b = Bench.of(small, {"student": STUDENT}, [{"steps": 1, "updates": updates, **LAST}])
    told: list[dict[str, float]] = []
    b.engine.listen = lambda event: told.append(event.values)
    losses = b.step()
    assert list(losses) == [BCE, f"{BCE} [2]"] and losses[BCE] > losses[f"{BCE} [2]"]  # the tables have moved between
    b.engine._report(0, 0, 1, losses)
    assert told == [{name: float(value.detach()) for name, value in losses.items()}]
    with pytest.raises(TrainingError, match=r"the term 'bce\(student.logit, label\)' is nan"):
        b.engine._report(0, 0, 1, {**losses, BCE: torch.tensor(torch.nan)})


def test_an_equal_term_keeps_its_name_where_the_first_one_rests(small: Small, group: None) -> None:
    updates = [{"terms": [BCE], "train": "student.tables", "every": 2}, {"terms": [BCE], "train": "student.net"}]
    b = Bench.of(small, {"student": STUDENT}, [{"steps": 2, "updates": updates, **LAST}])
    assert list(b.step(at=Now(1, 2))) == [f"{BCE} [2]"]


def generated(small: Small) -> Bench:
    """A generator invents rows, on which a student learns from a teacher of real ones."""
    members = {
        "teacher": OTHER, "gen": GENERATOR, "fake": {"same": "teacher", "view": {"embed": "live(gen.out)"}},
        "student": {
            **STUDENT, "view": {"embed": "gen.out"}, "serve": {"view": "serving"}, "share": {"tables": "teacher"},
        },
    }  # fmt: skip
    updates = [
        {"train": "gen", "feed": "z", "terms": ["l2(fake.logit, student.logit)"]},
        {"train": "student", "feed": "z", "terms": ["soft(student.logit, fake.logit)"]},
    ]
    phases = [{"steps": 2, "terms": ["bce(teacher.logit, label)"], **LAST}, {"steps": 2, "updates": updates, **LAST}]
    return Bench.of(small, members, phases, feeds={"z": {"noise": 600}})


def test_invented_rows_move_the_generator_through_a_frozen_teacher(small: Small, group: None) -> None:
    b = generated(small)
    b.engine.run(0, b.plan.phases[0])
    before = {name: b.state(name) for name in ("teacher", "gen", "student")}
    scores, _, _ = b.engine.score(["student"], b.engine.train)
    b.engine.run(1, b.plan.phases[1])
    dense = {name: {k: v for k, v in state.items() if not k.startswith("tables")} for name, state in before.items()}
    after = {name: {k: b.state(name)[k] for k in state} for name, state in dense.items()}
    assert same(dense["teacher"], after["teacher"])  # and its tables, which the student borrows:
    tables = {k: v for k, v in before["teacher"].items() if k.startswith("tables")}
    assert tables and same(tables, {k: b.state("teacher")[k] for k in tables})
    assert not same(dense["gen"], after["gen"]) and not same(dense["student"], after["student"])
    later, _, _ = b.engine.score(["student"], b.engine.train)
    assert (scores["student"] != later["student"]).any()  # it is scored on columns, which it was never trained on
    assert b.cast.heads["fake"] is b.cast.heads["teacher"]


def test_every_step_draws_other_noise_and_every_run_the_same(small: Small, group: None) -> None:
    from recdistill.distill.signal import Noise, Scene

    b = generated(small)
    batches = [next(b.engine.cursors["z"]) for _ in range(2)]
    draws = [Noise(500).value(Scene({}, batch, 0, Now(k))) for k, batch in enumerate(batches)]
    again = Noise(500).value(Scene({}, batches[0], 0, Now(0)))
    assert torch.equal(draws[0], again) and not torch.equal(draws[0], draws[1])
    assert abs(float(draws[0].mean())) < 0.02 and abs(float(draws[0].std()) - 1) < 0.02
    order = torch.randperm(len(batches[0]))
    from recdistill.data.reader import take

    assert torch.equal(Noise(500).value(Scene({}, take(batches[0], order), 0, Now(0))), draws[0][order])


def test_parts_of_a_member_move_alone(small: Small, group: None) -> None:
    trunk = {"student": {**STUDENT, "trunk": [8]}}
    for part, expected in (
        ("student.trunk", {"student.trunk"}),
        ("student.tables", {"tables.student"}),
        ("student.net.out", {"student.net.out"}),
    ):
        b = Bench.of(
            small, trunk, [{"steps": 1, "train": [part], "terms": [BCE], **LAST}, {"steps": 1, "terms": [BCE]}]
        )
        before = b.state("student")
        b.step()
        after = b.state("student")
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        assert changed and all(any(key.startswith(e) for e in expected) for key in changed), (part, changed)


WRONG: dict[str, tuple[dict[str, Any], list[dict[str, Any]], str]] = {
    "two owners of a table": (
        {"student": STUDENT, "other": {**OTHER, "share": {"tables": "student"}}},
        [{"steps": 1, "updates": [{"terms": [BCE]}, {"terms": ["bce(other.logit, label)"]}]}],
        "phases.0: updates 0 and 1 both move the tables of 'student'",
    ),
    "an unknown part": (
        {"student": STUDENT},
        [{"steps": 1, "train": "student.net.sstack", "terms": [BCE]}],
        "phases.0.train: 'student' has no module 'net.sstack'",
    ),
    "an unknown member": (
        {"student": STUDENT},
        [{"steps": 1, "train": "studnet", "terms": [BCE]}],
        "phases.0.train: no member 'studnet'; did you mean 'student'?",
    ),
    "a term that reaches nobody who moves": (
        {"student": STUDENT, "other": OTHER},
        [
            {"steps": 1, "train": "student", "terms": [BCE, "bce(other.logit, label)"]},
            {"steps": 1, "terms": ["bce(other.logit, label)"]},
        ],
        "teaches ['other'], none of whom moves in this update",
    ),
    "columns from a feed without any": (
        {"student": STUDENT},
        [{"steps": 1, "feed": "z", "terms": [BCE]}],
        "'student' reads columns, but the feed 'z' has none",
    ),
    "a circle": (
        {"student": STUDENT, "a": {**CRITIC, "inputs": ["b.out"]}, "b": {**CRITIC, "inputs": ["a.out"]}},
        [{"steps": 1, "terms": [BCE, "bce(a.logit, label)", "bce(b.logit, label)"]}],
        "members.a.inputs: read each other in a circle, a -> b -> a",
    ),
    "a wrong width": (
        {
            "student": STUDENT,
            "gen": {**GENERATOR, "outputs": 7},
            "fake": {"same": "student", "view": {"embed": "gen.out"}},
        },
        [{"steps": 1, "terms": [BCE, "l2(gen.hidden[-1], gen.hidden[-1])"]}],
        "members.fake.view.embed: has 7 values a row, but the looked-up vector has 33",
    ),
    "a privileged input of the student": (
        {"student": {**STUDENT, "inputs": ["other.logit"]}, "other": {**OTHER, "view": ["serving", "privileged"]}},
        [{"steps": 1, "terms": [BCE, "bce(other.logit, label)"]}],
        "members.other: reads ['dwell_ms'], known only after the event, but the student reads its output",
    ),
    "an input that cannot be served": (
        {"student": {**STUDENT, "inputs": ["mean(other.logit, other.logit)"]}, "other": OTHER},
        [{"steps": 1, "terms": [BCE, "bce(other.logit, label)"]}],
        "cannot be computed when the student serves",
    ),
    "carry between different nets": (
        {"student": STUDENT, "other": {**OTHER, "net": {"mlp": [4]}}},
        [{"steps": 1, "terms": [BCE, "bce(other.logit, label)"], "carry": {"student": "other"}}],
        "phases.0.carry.student: 'student' and 'other' are built differently",
    ),
    "a layer that is none": (
        {"student": STUDENT, "other": OTHER},
        [{"steps": 1, "terms": [BCE, "bce(other.logit, label)", "l2(student.hidden[5], other.hidden[0])"]}],
        "there is no such layer; other has 1 hidden layers, student has 1 hidden layers",
    ),
    "layers of different widths": (
        {"student": STUDENT, "other": {**OTHER, "net": {"mlp": [16]}}},
        [{"steps": 1, "terms": [BCE, "bce(other.logit, label)", "l2(student.hidden[0], other.hidden[0])"]}],
        "the learner has shape (2, 8), its target (2, 16)",
    ),
    "a loss of logits between layers": (
        {"student": STUDENT, "other": OTHER},
        [{"steps": 1, "terms": [BCE, "bce(other.logit, label)", "soft(student.hidden[0], other.hidden[0])"]}],
        "soft: compares logits of shape (B,), found (2, 8) and (2, 8); for layers use l2",
    ),
    "an input that is not known for every row": (
        {"student": STUDENT, "critic": {**CRITIC, "inputs": ["click"]}},
        [{"steps": 1, "terms": [BCE, "bce(critic.logit, label)"]}],
        "members.critic.inputs: click is not known for every row, so no member can read it",
    ),
    "a gate by what is not known for every row": (
        {"student": STUDENT, "other": OTHER},
        [{"steps": 1, "terms": [BCE, "bce(gate(student.logit, other.logit, by=memory(other.logit)), label)"]}],
        "members.gate0.inputs: memory(other.logit, decay=0.6) is not known for every row",
    ),
    "carry between different views": (
        {"student": STUDENT, "other": {**OTHER, "view": ["serving", "privileged"]}},
        [{"steps": 1, "terms": [BCE, "bce(other.logit, label)"], "carry": {"other": "student"}}],
        "phases.0.carry.other: 'other' and 'student' read other columns, or have them in other widths",
    ),
    "carry between different widths": (
        {"student": STUDENT, "other": {**OTHER, "dim": 8}},
        [{"steps": 1, "terms": [BCE, "bce(other.logit, label)"], "carry": {"other": "student"}}],
        "phases.0.carry.other: 'other' and 'student' read other columns, or have them in other widths",
    ),
    "a metric while validation rows are trained on": (
        {"student": STUDENT, "best": {"best": "student"}},
        [{"steps": 1, "terms": [BCE, "soft(student.logit, best.logit) * stalled(0, 1, student.auc)"]}],
        "a weight follows student.auc, which has no value while validation rows are trained on; remove train.refit",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_refused_before_anything_is_read(small: Small, name: str) -> None:
    members, phases, message = WRONG[name]
    more: dict[str, Any] = {"train": {"refit": True}} if "validation" in name else {}
    found = problems(small, members, phases, privileged=["dwell_ms"], feeds={"z": {"noise": 100}}, **more)
    assert any(message in problem for problem in found), found


def test_a_member_may_read_what_the_scenario_decides(small: Small, group: None, tmp_path: Path) -> None:
    spec = Path("feature_specs/marketplace_devices.yaml")
    encoded = encode(load_feature_spec(spec), str(small.log), tmp_path / "encoded")
    critic = {**CRITIC, "inputs": ["route(scenario, student.logit, other.logit, values='0 1')"]}
    members = {"student": STUDENT, "other": OTHER, "critic": critic}
    terms = [BCE, "bce(other.logit, label)", "bce(critic.logit, label)"]
    devices = Small(small.log, encoded, small.job)
    b = Bench.of(devices, members, [{"steps": 2, "terms": terms, **LAST}], spec=str(spec))
    batch = b.batch()
    played = play(b.cast, ["student", "other", "critic"], batch)
    first, second = (played[name].logits_BK[:, 0] for name in ("student", "other"))
    device = torch.from_numpy(encoded.labels("train").collect()["scenario"].to_numpy().copy())[: len(batch)]
    expected = torch.where(device == 0, first, torch.where(device == 1, second, (first + second) / 2))
    assert torch.allclose(played["critic"].embed_BE[:, 0], expected, atol=1e-6) and len(device.unique()) == 4
    b.engine.run(0, b.plan.phases[0])
    found = problems(small, members, [{"steps": 2, "terms": terms}])
    assert any("the feature spec names no `scenario`" in problem for problem in found)


def test_every_kind_of_mistake_comes_in_one_message(small: Small) -> None:
    members = {
        "student": {**STUDENT, "view": ["serving", "privileged"]},
        "other": {**OTHER, "share": {"tables": "student"}},
    }
    phases = [
        {"steps": -5, "terms": [BCE, "bce(other.logit, label)"]},
        {"steps": 5, "terms": ["soft(student.logitt, other.logit)", "soft(student.logit, other.logit, temperature=0)"]},
        {"steps": 5, "updates": [{"terms": [BCE]}, {"terms": ["bec(other.logit, label)"], "train": "othr"}]},
    ]
    found = problems(small, members, phases, privileged=["dwell_ms"])
    for message in (
        "phases.0.steps", "a serving member may read serving columns only", "did you mean 'student.logit'",
        "temperature must be positive", "unknown loss 'bec'; did you mean 'bce'?",
        "no member 'othr'; did you mean 'other'?",
    ):  # fmt: skip
        assert any(message in problem for problem in found), (message, found)
