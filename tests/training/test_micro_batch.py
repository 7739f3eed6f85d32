"""A batch that is computed in parts takes the step of the whole one, term by term."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recdistill.data.transforms.hashing import splitmix64_tensor
from recdistill.distill.schedule import Now
from recdistill.distill.selector import Beating
from recdistill.training import engine as engine_module
from tests.conftest import Small
from tests.training.bench import LAST, Bench, problems, same
from tests.training.rich import POOL

ROWS = 150
STUDENT: dict[str, Any] = {"net": {"mlp": [8]}, "dim": 4, "pool": POOL, "serve": True}
TEACHER: dict[str, Any] = {
    "net": {"mlp": [8]}, "dim": 4, "view": ["serving", "privileged"],
    "pool": {"clicks": {"self_attention": {"heads": 2}}},
}  # fmt: skip
MEMBERS: dict[str, Any] = {
    "student": STUDENT, "teacher": TEACHER,
    "noisy": {"same": "student", "distort": {"mask": 0.3, "truncate": 0.5, "noise": 0.3}},
    "critic": {"net": {"mlp": [4]}, "view": [], "inputs": ["live(student.hidden[-1])", "teacher.logit"], "outputs": 1},
}  # fmt: skip
TERMS = [
    "bce(student.logit, label)",
    "bce(student.logit, label, over='batch')",
    "soft(student.logit, teacher.logit, temperature=2)",
    "soft(student.logit, teacher.logit).rows(beats(teacher.logit, student.logit, label, margin=0.01))",
    "soft(student.logit, teacher.logit).rows(agrees(teacher.logit, liked))",
    "soft(student.logit, live(teacher.logit)).rows(sampled(0.4))",
    "soft(student.logit, teacher.logit).rows(present(label))",
    "bce(teacher.logit, label).rows(equals(liked, 1))",
    "l2(student.hidden[-1], teacher.hidden[-1])",
    "l2(adapt(student.hidden[-1], width=8, hidden=4), teacher.hidden[-1])",
    "l2(student.attention.clicks, teacher.attention.clicks)",
    "bce(gate(student.logit, teacher.logit, by=student.embed), label)",
    "soft(student.logit, closest(label, teacher.logit, noisy.logit))",
    "bce(critic.logit, liked)",
    "bce(reverse(student.logit), liked)",
    "soft(noisy.logit, student.logit)",
    "soft(student.logit, pick(teacher.logit, noisy.logit, by='row'))",
    "soft(student.logit, route(liked, teacher.logit, noisy.logit))",
]


Moved = dict[str, Tensor]


def bench(rich: Small, terms: list[str], size: int | None, members: dict[str, Any] = MEMBERS) -> Bench:
    """The terms in a phase of their own, behind one that teaches everybody, so that nobody is idle."""
    implied = [] if members is not MEMBERS else ["bce(critic.logit, label)"]
    phases = [
        {"steps": 1, "terms": terms, **LAST},
        {"steps": 1, "terms": ["bce(student.logit, label)", "bce(teacher.logit, label)", *implied], **LAST},
    ]
    return Bench.of(rich, members, phases, train={"micro_batch": size}, **rich.job)


def stepped(rich: Small, terms: list[str], size: int | None, **more: Any) -> tuple[Moved, Moved]:
    """What a step moves everything by, and the values of the terms."""
    b = bench(rich, terms, size, **more)
    batch = b.batch(ROWS)
    assert 20 < int(batch.labels["y"].isnan().sum()) < 80
    before = {key: value.clone() for key, value in b.cast.state(b.cast.members).items()}
    torch.manual_seed(3)
    values = b.step(at=Now(3, 8), batch=batch)
    after = b.cast.state(b.cast.members)
    return {key: after[key] - value for key, value in before.items()}, {k: v.detach() for k, v in values.items()}


@pytest.mark.parametrize("term", TERMS)
def test_parts_add_up_to_the_whole(rich: Small, group: None, term: str) -> None:
    whole, value = stepped(rich, [term], None)
    assert any(bool(v.any()) for v in whole.values())
    for size in (64, 7):  # neither divides the batch
        parts, same_value = stepped(rich, [term], size)
        assert value.keys() == same_value.keys() and float(value[term]) != 0
        assert torch.allclose(value[term], same_value[term], atol=1e-6)
        for key, moved in whole.items():
            assert torch.allclose(moved, parts[key], atol=1e-6), (size, key)


@pytest.mark.parametrize("size", [1, 75, 149, 150, 1000])
def test_all_terms_together_and_any_size(rich: Small, group: None, size: int) -> None:
    whole, values = stepped(rich, TERMS, None)
    parts, same_values = stepped(rich, TERMS, size)
    for key, moved in whole.items():
        assert torch.allclose(moved, parts[key], atol=2e-6), key
    assert values.keys() == same_values.keys()
    assert [*map(float, values.values())] == pytest.approx([*map(float, same_values.values())], abs=1e-5)


def test_parts_that_divide_by_their_own_rows_are_told_apart(
    rich: Small, group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wrong twin: every part is a mean of its own, so that rows in parts of few labels weigh more."""
    whole, _ = stepped(rich, TERMS[:1], None)
    monkeypatch.setattr(engine_module.Engine, "_totals", lambda *_: {})
    parts, _ = stepped(rich, TERMS[:1], 64)
    assert any(not torch.allclose(moved, parts[key], atol=1e-6) for key, moved in whole.items())


class ByContent(nn.Dropout):
    """Dropout that is decided by what it is given, so that a row loses the same numbers in any company."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        bits = splitmix64_tensor(x.detach().contiguous().view(torch.int32).to(torch.int64) + torch.arange(x.shape[1]))
        return x * ((bits & 1023).float() / 1024 >= self.p) / (1 - self.p)


BEATS = "bce(student.logit, label).rows(beats(student.logit, teacher.logit, label))"
DROPPED = {"student": {**STUDENT, "dropout": 0.3}, "teacher": {**TEACHER, "dropout": 0.2}}


def test_dropout_is_that_of_training_in_every_look_at_the_rows(
    rich: Small, group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the terms divide by is found with members in training mode, as their losses are."""
    plain, _ = stepped(rich, [BEATS], None, members=DROPPED)
    monkeypatch.setattr(nn, "Dropout", ByContent)
    whole, value = stepped(rich, [BEATS], None, members=DROPPED)
    parts, same_value = stepped(rich, [BEATS], 40, members=DROPPED)
    assert torch.allclose(value[BEATS], same_value[BEATS], atol=1e-6)
    assert all(torch.allclose(moved, parts[key], atol=1e-6) for key, moved in whole.items())
    none, _ = stepped(rich, [BEATS], 40, members={"student": STUDENT, "teacher": TEACHER})
    assert not same(none, parts) and not same(plain, whole)


def masks(rich: Small, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The rows that a selector chooses, whenever it is asked in a step of four parts."""
    found: list[Tensor] = []
    mask = Beating.mask
    with monkeypatch.context() as patch:
        patch.setattr(Beating, "mask", lambda self, scene: (found.append(mask(self, scene)), found[-1])[1])
        stepped(rich, [BEATS], 40, members=DROPPED)
    return found[-8:]


def test_the_same_random_numbers_are_drawn_in_both_looks(
    rich: Small, group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = masks(rich, monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(first[:4], first[4:], strict=True))
    monkeypatch.setattr(torch, "set_rng_state", lambda _: None)  # the wrong twin: others are drawn
    wrong = masks(rich, monkeypatch)
    assert any(not torch.equal(a, b) for a, b in zip(wrong[:4], wrong[4:], strict=True))


def test_a_part_without_rows_that_take_part_adds_nothing(rich: Small, group: None) -> None:
    moved = []
    for size in (None, 50):
        b = bench(rich, TERMS[:1], size)
        batch = b.batch(ROWS)
        batch.labels["y"][:100] = torch.nan  # of three parts only the last one has labels
        before = b.state("student")
        b.step(at=Now(3, 8), batch=batch)
        moved.append({key: b.state("student")[key] - value for key, value in before.items()})
    assert all(torch.allclose(moved[0][key], value, atol=1e-6) for key, value in moved[1].items())
    assert any(bool(value.any()) for value in moved[0].values())


def test_updates_and_their_parts_stay_apart(rich: Small, group: None) -> None:
    """Gradients pass through members that do not move, in parts as in one piece."""
    updates = [
        {"terms": ["bce(critic.logit, liked)"], "train": "critic"},
        {"terms": ["bce(student.logit, label)", "bce(critic.logit, liked)"], "train": "student"},
    ]
    found = []
    for size in (None, 40):
        phases = [{"steps": 1, "updates": updates}, {"steps": 1, "terms": ["bce(teacher.logit, label)"]}]
        members = {name: MEMBERS[name] for name in ("student", "critic")} | {"teacher": TEACHER}
        b = Bench.of(rich, members, phases, train={"micro_batch": size}, **rich.job)
        before = {key: value.clone() for key, value in b.cast.state(b.cast.members).items()}
        b.step(batch=b.batch(ROWS))
        found.append({key: value - before[key] for key, value in b.cast.state(b.cast.members).items()})
    for key, moved in found[0].items():
        assert torch.allclose(moved, found[1][key], atol=1e-6), key
        assert bool(moved.any()) == (not key.startswith(("teacher", "tables.teacher"))), key


@pytest.mark.parametrize(
    "term",
    [
        "bce(student.logit, label).rows(smallest(bce(teacher.logit, label), keep=0.5))",
        "soft(student.logit, shuffled(teacher.logit))",
        "soft(student.logit, mean(teacher.logit, shuffled(student.logit)))",
    ],
)
def test_terms_that_compare_the_rows_of_a_batch_are_refused(rich: Small, term: str) -> None:
    members = {"student": STUDENT, "teacher": TEACHER}
    phases = [{"steps": 1, "terms": ["bce(student.logit, label)", "bce(teacher.logit, label)", term]}]
    found = problems(rich, members, phases, train={"micro_batch": 10}, **rich.job)
    assert found == [f"phases.0: {term!r} compares the rows of a batch with each other; remove train.micro_batch"]
    assert problems(rich, members, phases, **rich.job) == []
