"""Members that see distorted views: who sees what, one lookup of each table, and one exact step."""

from typing import Any

import pytest
import torch
from torch import Tensor

from recdistill.data.batch import Batch
from recdistill.data.distort import distorted
from recdistill.distill.schedule import Now
from recdistill.distill.signal import Scene, salted
from recdistill.training.lookup import Lookup
from recdistill.training.play import Lookups, Play, play
from recdistill.training.sharding import Tables
from tests.conftest import Small
from tests.training.bench import LAST, Bench
from tests.training.rich import POOL, by_hand, weights_of

NOISY: dict[str, Any] = {"mask": 0.3, "fields": 0.2, "truncate": 0.5, "noise": 0.5}
OTHERWISE: dict[str, Any] = {"mask": 0.1, "truncate": 0.8, "levels": [0.5, 1], "columns": ["item", "clicks", "tags"]}
STUDENT: dict[str, Any] = {"net": {"mlp": [8]}, "dim": 4, "pool": POOL, "serve": True}
TEACHER: dict[str, Any] = {
    "net": {"mlp": [8]}, "dim": 4, "view": ["serving", "privileged"], "share": {"tables": "student"},
    "pool": {"clicks": {"self_attention": {"heads": 2}}},
}  # fmt: skip
BCE, TEACH = "bce(student.logit, label)", "bce(teacher.logit, label)"
SOFT = "soft(student.logit, teacher.logit)"


def bench(rich: Small, members: dict[str, Any], terms: list[str], **more: Any) -> Bench:
    return Bench.of(rich, members, [{"steps": 8, "terms": terms, **LAST}], **rich.job, **more)


def view(b: Bench, name: str, batch: Batch, now: Now) -> Batch:
    """The batch as a member sees it while training."""
    how = b.cast.members[name].distort
    return batch if how is None else distorted(batch, how, salted(Scene({}, batch, 0, now), str(how)), b.cast.spec)


def pieces(value: Tensor, other: Tensor) -> float:
    return float((value - other).detach().abs().max())


def test_the_student_sees_a_distorted_view_and_the_teacher_the_clean_one(rich: Small, group: None) -> None:
    members = {"student": {**STUDENT, "distort": NOISY}, "teacher": TEACHER}
    b = bench(rich, members, [BCE, TEACH, SOFT])
    batch, now, weights = b.batch(64), Now(3, 8), weights_of(b.cast)
    found = play(b.cast, ["student", "teacher"], batch, frozenset({"student", "teacher"}), now=now)
    for name in ("student", "teacher"):
        seen = view(b, name, batch, now)
        assert pieces(found[name].embed_BE, by_hand(b.cast, name, seen, weights).embed_BE) < 1e-6, name
    clean = by_hand(b.cast, "student", batch, weights).embed_BE
    assert pieces(found["student"].embed_BE, clean) > 0.1
    again = play(b.cast, ["student"], batch, frozenset({"student"}), now=Now(4, 8))
    assert not torch.equal(again["student"].embed_BE, found["student"].embed_BE)  # another step, another view


TWINS = {
    "student": STUDENT,
    "noisy": {"same": "student", "distort": NOISY},
    "short": {"same": "student", "distort": OTHERWISE},
    "teacher": {**TEACHER, "distort": OTHERWISE},
}
TWIN_TERMS = [
    BCE, TEACH, "bce(noisy.logit, label) * 0.5", "soft(short.logit, student.logit)", "soft(noisy.logit, teacher.logit)",
    "l2(short.embed, live(noisy.embed)) * 0.1",
]  # fmt: skip


def reference(b: Bench, batch: Batch, now: Now) -> dict[tuple[str, str], Tensor]:
    """The gradient on every table, by plain autograd over plain embeddings of each member's own view."""
    weights = weights_of(b.cast)
    out = {name: by_hand(b.cast, name, view(b, name, batch, now), weights) for name in b.cast.members}
    logit = {name: found.logits_BK[:, 0] for name, found in out.items()}
    label, hard = batch.labels["y"], torch.nn.functional.binary_cross_entropy_with_logits
    known = ~label.isnan()

    def bce(name: str) -> Tensor:
        return hard(logit[name][known], label[known])

    def soft(name: str, target: str) -> Tensor:
        return hard(logit[name], torch.sigmoid(logit[target].detach()))

    near = ((out["short"].embed_BE - out["noisy"].embed_BE) ** 2).mean(1).mean()
    total = bce("student") + bce("teacher") + 0.5 * bce("noisy") + soft("short", "student")
    total = total + soft("noisy", "teacher") + 0.1 * near
    return dict(zip(weights, torch.autograd.grad(total, list(weights.values())), strict=True))


def tables(b: Bench) -> dict[tuple[str, str], Tensor]:
    return {
        (bank, table): shard.clone() for bank in b.cast.layout.banks for table, shard, _ in b.cast.tables.shards(bank)
    }


def test_two_names_of_one_member_look_up_once_and_take_one_exact_step(
    rich: Small, group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables with sequences and bags as well, seen in three views at once."""
    b = bench(rich, TWINS, TWIN_TERMS)
    batch, now = b.batch(64), Now(3, 8)
    before, gradient = tables(b), reference(b, batch, now)
    counted: list[str] = []
    look_up, push = Tables.look_up, Lookup.push
    monkeypatch.setattr(Tables, "look_up", lambda self, n, *a, **k: (counted.append(n), look_up(self, n, *a, **k))[1])
    monkeypatch.setattr(Lookup, "push", lambda self, *a: (counted.append("push"), push(self, *a))[1])
    b.step(at=now, batch=batch)
    assert sorted(counted) == ["push", "push", "push", "student", "student-tokens", "teacher-tokens"]
    for key, shard in tables(b).items():
        assert torch.allclose(shard, before[key] - 0.5 * gradient[key], atol=1e-6), key
        assert bool(gradient[key].any()), key


def test_row_wise_adagrad_sees_the_gradients_of_all_views_together(rich: Small, group: None) -> None:
    """A step for each view would add up squares, not the square of the sum."""
    b = bench(rich, TWINS, TWIN_TERMS, train={"tables": {"rowwise_adagrad": {"lr": 0.1, "eps": 1e-6}}})
    batch, now = b.batch(64), Now(3, 8)
    before, gradient = tables(b), reference(b, batch, now)
    b.step(at=now, batch=batch)
    for key, shard in tables(b).items():
        size = gradient[key].square().mean(1, keepdim=True).sqrt()
        assert torch.allclose(shard, before[key] - 0.1 * gradient[key] / (size + 1e-6), atol=1e-4), key


def test_a_step_for_each_view_is_another_step(rich: Small, group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrong twin: what the test above would not tell from the right one with plain gradient steps."""
    found = []
    for apart in (False, True):
        b = bench(rich, TWINS, TWIN_TERMS, train={"tables": {"rowwise_adagrad": {"lr": 0.1, "eps": 1e-6}}})
        batch, now = b.batch(64), Now(3, 8)
        (update,) = b.plan.phases[0].updates
        if apart:
            rows, push = len(batch), Lookup.push

            def by_view(self: Lookup, *given: float, push: Any = push, rows: int = rows) -> None:
                gradient = self.leaf_BW.grad
                if gradient is None or self.spans:
                    push(self, *given)
                    return
                for first in range(0, len(gradient), rows):
                    part = torch.zeros_like(gradient)
                    part[first : first + rows] = gradient[first : first + rows]
                    self.pooled.backward(part, retain_graph=True)

            monkeypatch.setattr(Lookup, "push", by_view)
        b.step(at=now, batch=batch)
        found.append(tables(b))
    assert update.trained == {"student", "noisy", "short", "teacher"}
    assert not torch.allclose(found[0]["student", "city"], found[1]["student", "city"], atol=1e-4)


def test_members_with_one_distortion_see_the_same_view(rich: Small, group: None) -> None:
    members = {"student": {**STUDENT, "distort": NOISY}, "twin": {**STUDENT, "serve": False, "distort": NOISY}}
    b = bench(rich, members, [BCE, "bce(twin.logit, label)"])
    batch = b.batch(64)
    lookups = Lookups(b.cast, ["student", "twin"], batch, frozenset(), training=True, seed=0, now=Now(1))
    played = Play(b.cast, lookups, (0, 64), frozenset({"student"}), 0, Now(1))
    price = next(f.start for f in b.cast.layout.members["student"].flat.fields if f.name == "price")
    assert torch.equal(played["student"].embed_BE[:, price], played["twin"].embed_BE[:, price])
    assert len(lookups.views) == 1


def scores(b: Bench, name: str = "student") -> Tensor:
    return torch.from_numpy(b.engine.score([name], b.engine.valid)[0][name])


def test_evaluation_is_clean_unless_scores_ask_for_a_level(rich: Small, group: None) -> None:
    plain = scores(bench(rich, {"student": STUDENT}, [BCE]))
    found = {}
    for level in (None, 0.0, 0.3, 1.0):
        b = bench(rich, {"student": {**STUDENT, "distort": {**NOISY, "scores": level}}}, [BCE])
        found[level] = scores(b)
        assert torch.equal(found[level], scores(b))  # the same view in every evaluation
    assert torch.equal(found[None], plain) and torch.equal(found[0.0], plain)
    size = [float((found[level] - plain).abs().mean()) for level in (0.3, 1.0)]
    assert 0 < size[0] < size[1]


def test_scores_see_the_level_that_they_ask_for_and_not_those_of_training(rich: Small, group: None) -> None:
    how = {"mask": 0.4, "levels": [0, 2], "scores": 1.0, "columns": ["price"]}
    b = bench(rich, {"student": {**STUDENT, "distort": how}}, [BCE])
    batch = next(iter(b.engine.valid.in_order(150)))
    lookups = Lookups(b.cast, ["student"], batch, frozenset(), training=False, seed=0, now=Now())
    ((key, seen),) = lookups.views.items()
    assert key is not None and key.levels == (1.0,)
    lost = (seen.serving.floats(("price",)) == 0).float().mean()
    assert 0.25 < float(lost) < 0.55
