"""What is kept of each row: a moving average by row id, which knows nothing at first and depends on no order."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import Tensor

from recdistill.data.batch import Batch
from recdistill.data.reader import take
from recdistill.distill.combine import mean, memory, weighted
from recdistill.distill.schedule import Now
from recdistill.distill.signal import Logit
from recdistill.training import engine as engine_module
from recdistill.training import memory as memory_module
from recdistill.training.memory import Meter, RowMemory, measured, memory_of
from recdistill.training.play import play
from tests.conftest import Small
from tests.training.bench import BCE, LAST, OTHER, STUDENT, Bench, problems, same

IDS = torch.tensor([70, -5, 3, 2**62, 900])


def test_the_average_is_the_recursion_divided_by_what_has_entered() -> None:
    kept, slow, weight = RowMemory(IDS, 0.7), dict.fromkeys(IDS.tolist(), 0.0), dict.fromkeys(IDS.tolist(), 0.0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        rows = IDS[torch.rand(5, generator=generator) < 0.6]
        values = torch.randn(len(rows), generator=generator)
        kept.write(rows, values)
        for row, value in zip(rows.tolist(), values.tolist(), strict=True):
            slow[row] = 0.7 * slow[row] + 0.3 * value
            weight[row] = 0.7 * weight[row] + 0.3
    expected = torch.tensor([slow[row] / weight[row] for row in IDS.tolist()])
    assert torch.allclose(kept.read(IDS), expected, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_a_constant_is_remembered_as_itself_from_the_first_time_on(decay: float) -> None:
    kept = RowMemory(IDS, decay)
    for _ in range(3):
        kept.write(IDS, torch.full((5,), -2.5))
        assert torch.allclose(kept.read(IDS), torch.full((5,), -2.5), atol=1e-4)


def test_what_was_never_written_is_not_known() -> None:
    kept = RowMemory(IDS, 0.5)
    assert bool(kept.read(IDS).isnan().all())
    kept.write(IDS[:2], torch.tensor([1.0, torch.nan]))  # what is not known does not enter
    assert kept.read(IDS)[0] == 1 and bool(kept.read(IDS)[1:].isnan().all())
    kept.write(torch.tensor([12345, -(2**63), 2**63 - 1]), torch.ones(3))  # nobody's rows
    assert bool(kept.read(torch.tensor([12345, -(2**63), 2**63 - 1])).isnan().all())
    assert kept.read(torch.zeros(0, dtype=torch.int64)).shape == (0,)


def test_a_memory_of_no_rows_knows_nothing() -> None:
    kept = RowMemory(torch.zeros(0, dtype=torch.int64), 0.5)
    kept.write(IDS, torch.ones(5))
    assert bool(kept.read(IDS).isnan().all())


def test_neither_the_order_of_rows_nor_how_they_are_cut_matters() -> None:
    values = torch.randn(5)
    order = torch.tensor([3, 0, 4, 1, 2])
    whole, shuffled, parts = (RowMemory(IDS[order], 0.5) for _ in range(3))
    for k in range(2):
        whole.write(IDS, values + k)
        shuffled.write(IDS[order], values[order] + k)
        for first in (0, 2, 4):
            parts.write(IDS[first : first + 2], values[first : first + 2] + k)
    assert torch.equal(whole.read(IDS), shuffled.read(IDS)) and torch.equal(whole.read(IDS), parts.read(IDS))
    assert torch.equal(whole.read(IDS)[order], whole.read(IDS[order]))


def test_further_rows_are_admitted_without_a_loss() -> None:
    kept = RowMemory(IDS[:3], 0.5)
    kept.write(IDS[:3], torch.tensor([1.0, 2.0, 3.0]))
    kept.admit(torch.tensor([4, -5, 900, 4]))
    assert kept.row_id_N.tolist() == sorted([70, -5, 3, 4, 900])
    assert kept.read(IDS[:3]).tolist() == [1, 2, 3] and bool(kept.read(torch.tensor([4, 900])).isnan().all())
    kept.write(torch.tensor([4]), torch.tensor([7.0]))
    assert kept.read(torch.tensor([4])).item() == 7


def test_its_state_is_all_that_it_is_made_of() -> None:
    kept = RowMemory(IDS, 0.123456789)
    kept.write(IDS[:3], torch.randn(3))
    again = RowMemory.of({name: value.clone() for name, value in kept.state.items()})
    for each in (kept, again):
        each.write(IDS[1:], torch.ones(4))
    assert torch.equal(kept.read(IDS), again.read(IDS))
    again.write(IDS, torch.zeros(5))
    assert not torch.equal(kept.read(IDS), again.read(IDS))  # nothing is shared with the first one


def test_the_same_signal_made_in_another_way_is_another_memory() -> None:
    a, b = Logit("a"), Logit("b")
    signals = [
        mean(a, b), weighted(a, b, weights="3 1"), mean(a, b, of="probability"), a, Logit("a", 1), mean(b, a),
    ]  # fmt: skip
    keys = {memory(signal, decay=decay).key for signal in signals for decay in (0.5, 0.9)}
    assert len(keys) == 12
    assert memory(mean(Logit("a"), b), decay=0.5).key in keys


# What is kept of all rows together


def test_agreement_is_measured_as_scikit_learn_does() -> None:
    generator = torch.Generator().manual_seed(1)
    label, logit = (torch.rand(200, generator=generator) < 0.2).float(), torch.randn(200, generator=generator)
    logit = logit + label
    expected = [
        ((logit > 0) == (label == 1)).float().mean().item(),
        2 * balanced_accuracy_score(label, logit > 0) - 1,
        2 * roc_auc_score(label, logit) - 1,
    ]
    found = measured(torch.stack([label, logit], 1))
    assert found[:3].tolist() == pytest.approx(expected, abs=1e-6)
    assert float((logit > found[3]).float().mean()) == pytest.approx(float(label.mean()), abs=0.01)
    unknown = torch.tensor([[torch.nan, 5.0], [1.0, torch.nan]])
    assert torch.equal(measured(torch.cat([torch.stack([label, logit], 1), unknown])), found)


def test_agreement_is_nothing_where_it_is_worse_than_chance_and_not_known_where_a_class_is_missing() -> None:
    against = torch.tensor([[0.0, 1.0], [1.0, -1.0]])
    assert measured(against)[:3].tolist() == [0, 0, 0]
    assert measured(against[:1]).isnan().tolist() == [False, True, True, False]
    assert bool(measured(torch.zeros(0, 2)).isnan().all())


def test_a_meter_averages_over_steps_and_goes_on_from_its_state() -> None:
    meter = Meter(0.5)
    assert bool(meter.read(IDS).isnan().all()) and meter.read(IDS).shape == (5, 4)
    good, bad = torch.tensor([[0.0, -1.0], [1.0, 3.0]]), torch.tensor([[0.0, 1.0], [1.0, -3.0]])
    meter.write(IDS[:2], good)
    assert meter.read(IDS)[3, :3].tolist() == [1, 1, 1]
    meter.write(IDS[:2], bad)
    assert torch.allclose(meter.read(IDS)[0, :3], torch.full((3,), 1 / 3))  # the older half counts half
    meter.write(IDS[:1], good[:1])  # one class: nothing is said of balance and order
    again = memory_of({name: value.clone() for name, value in meter.state.items()})
    for each in (meter, again):
        each.write(IDS[:2], good)
    assert torch.equal(meter.read(IDS), again.read(IDS))
    assert isinstance(memory_of(RowMemory(IDS, 0.5).state), RowMemory)


# In training

SELF = "soft(student.logit, memory(student.logit, decay=0.5))"


def trained(small: Small, term: str = SELF, steps: int = 40, **more: Any) -> Bench:
    members = {"student": STUDENT, "teacher": OTHER}
    terms = [BCE, "bce(teacher.logit, label)", term]
    return Bench.of(small, members, [{"steps": steps, "terms": terms, **LAST}], **more)


Targets = list[tuple[Batch, Tensor, Tensor]]


def run(b: Bench, steps: int, monkeypatch: pytest.MonkeyPatch) -> Targets:
    """Of every step the batch, what was remembered, and the student's logit."""
    found: Targets = []
    original = engine_module.Engine.update
    (remembered,) = b.plan.phases[0].memories.values()

    def update(self: Any, given: Any, batch: Batch, now: Now, optimizers: Any) -> Any:
        scene = play(self.cast, ["student"], batch, frozenset(), now=now).scene
        target = self.memories[remembered.key].read(batch.row_id_B).clone()
        found.append((batch, target, scene.outputs["student"].logits_BK[:, 0].detach().clone()))
        return original(self, given, batch, now, optimizers)

    with monkeypatch.context() as patch:
        patch.setattr(engine_module.Engine, "update", update)
        b.engine.run(0, b.plan.phases[0], steps)
    return found


def is_the_average_of_earlier_epochs(found: Targets) -> bool:
    """Whether what is remembered of each row is made of its own logits, each from an earlier epoch."""
    total: dict[int, float] = {}
    weight: dict[int, float] = {}
    for batch, target, logit in found:
        for row, seen, value in zip(batch.row_id_B.tolist(), target.tolist(), logit.tolist(), strict=True):
            expected = total[row] / weight[row] if row in total else None
            if (expected is None) != (seen != seen):
                return False
            if expected is not None and abs(expected - seen) > 1e-5:
                return False
            total[row] = 0.5 * total.get(row, 0.0) + 0.5 * value
            weight[row] = 0.5 * weight.get(row, 0.0) + 0.5
    return max(weight.values()) > 0.8  # some row has come three times


def test_a_row_is_taught_by_what_it_was_in_earlier_epochs(
    small: Small, group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = trained(small, train={"batch": 600})
    assert b.engine.steps_of(b.plan.phases[0]) == 8
    assert is_the_average_of_earlier_epochs(run(b, 20, monkeypatch))


def test_within_an_epoch_the_target_does_not_change(small: Small, group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    b = trained(small, train={"batch": 600})
    found = run(b, 16, monkeypatch)
    kept = b.engine.memories[next(iter(b.plan.phases[0].memories))]
    rows = torch.cat([batch.row_id_B for batch, _, _ in found[8:]])
    assert len(rows) == len(rows.unique()) == small.encoded.rows["train"]
    first = {
        r: v for batch, _, logit in found[:8] for r, v in zip(batch.row_id_B.tolist(), logit.tolist(), strict=True)
    }
    for batch, target, _ in found[8:]:
        assert torch.allclose(target, torch.tensor([first[row] for row in batch.row_id_B.tolist()]), atol=1e-5)
    assert not torch.equal(
        kept.read(rows), torch.cat([target for _, target, _ in found[8:]])
    )  # but it did for the next


class ByPosition(RowMemory):
    """The wrong twin: a cache that is indexed by the place in the epoch, as if every epoch had one order."""

    place = 0

    def _places(self, row_id_B: Tensor) -> tuple[Tensor, Tensor]:
        place_B = (torch.arange(len(row_id_B)) + self.place) % len(self.row_id_N)
        return place_B, torch.ones_like(place_B, dtype=torch.bool)

    def write(self, row_id_B: Tensor, value_B: Tensor) -> None:
        super().write(row_id_B, value_B)
        self.place += len(row_id_B)


class Biased(RowMemory):
    """Another wrong twin: an average that begins at zero and stays near it."""

    def read(self, row_id_B: Tensor) -> Tensor:
        place_B, _ = self._places(row_id_B)
        return torch.where(self.entered_N[place_B] > 0, self.total_N[place_B], torch.nan)


class Certain(RowMemory):
    """A third one: what is not known counts as an even chance."""

    def read(self, row_id_B: Tensor) -> Tensor:
        return super().read(row_id_B).nan_to_num(0.0)


@pytest.mark.parametrize("twin", [ByPosition, Biased, Certain])
def test_other_memories_are_told_apart(
    small: Small, group: None, monkeypatch: pytest.MonkeyPatch, twin: Callable[..., RowMemory]
) -> None:
    monkeypatch.setattr(memory_module, "RowMemory", twin)
    assert not is_the_average_of_earlier_epochs(run(trained(small, train={"batch": 600}), 20, monkeypatch))


def test_rows_of_which_nothing_is_known_take_no_part(small: Small, group: None) -> None:
    b = trained(small)
    batch = b.batch(256)
    values = b.step(at=Now(0, 40), batch=batch)
    assert float(values[SELF].detach()) == 0 and float(values[BCE].detach()) > 0
    half = take(batch, torch.arange(0, 256, 2))
    again = trained(small)
    again.step(at=Now(0, 40), batch=half)
    term = again.plan.phases[0].terms[2]
    played = play(again.cast, ["student", "teacher"], batch, frozenset({"student", "teacher"}))
    scene = replace(played.scene, memories=again.engine.memories)
    _, weight = term.losses(scene)
    assert torch.equal(weight > 0, torch.isin(batch.row_id_B, half.row_id_B))


def test_a_memory_warms_up_while_its_term_weighs_nothing(small: Small, group: None) -> None:
    term = SELF + " * step(0, 1, at=2)"
    b = Bench.of(small, {"student": STUDENT}, [{"steps": 40, "terms": [BCE, term], **LAST}])
    batch = b.batch(64)
    (key,) = b.plan.phases[0].memories
    logit = play(b.cast, ["student"], batch)["student"].logits_BK[:, 0].clone()
    assert list(b.step(at=Now(0, 40), batch=batch)) == [BCE]
    assert torch.equal(b.engine.memories[key].read(batch.row_id_B), logit)
    assert float(b.step(at=Now(2, 40), batch=batch)[term].detach()) > 0


def test_a_memory_warms_up_while_nothing_else_is_done(small: Small, group: None) -> None:
    """An update whose terms all weigh nothing moves nobody, not even by a penalty, and remembers all the same."""
    terms = [BCE + " * step(0, 1, at=2)", SELF + " * step(0, 1, at=2)"]
    penalised = {"tables": {"sgd": {"lr": 0.5, "l2": 0.1}}}
    b = Bench.of(small, {"student": STUDENT}, [{"steps": 40, "terms": terms, **LAST}], train=penalised)
    batch = b.batch(64)
    (key,) = b.plan.phases[0].memories
    before = b.state("student")
    logit = play(b.cast, ["student"], batch)["student"].logits_BK[:, 0].clone()
    assert b.step(at=Now(0, 40), batch=batch) == {}
    assert same(b.state("student"), before)
    assert torch.equal(b.engine.memories[key].read(batch.row_id_B), logit)
    assert float(b.step(at=Now(2, 40), batch=batch)[terms[1]].detach()) > 0
    assert not same(b.state("student"), before)


def test_parts_of_a_batch_remember_what_the_whole_does(small: Small, group: None) -> None:
    kept = []
    for size in (None, 100):
        b = trained(small, train={"micro_batch": size})
        for step in range(3):
            b.step(at=Now(step, 40))
        kept.append(next(iter(b.engine.memories.values())))
    assert torch.allclose(kept[0].read(kept[0].row_id_N), kept[1].read(kept[0].row_id_N), atol=1e-6, equal_nan=True)
    assert int((kept[0].entered_N > 0).sum()) == 256


def test_rows_of_a_later_feed_are_remembered_as_well(small: Small, group: None) -> None:
    members = {"student": STUDENT}
    feeds = {"pool": {"log": str(small.log)}, "mixed": {"mix": {"log": 1, "pool": 1}}}
    phases: list[dict[str, Any]] = [
        {"steps": 1, "terms": [BCE, SELF], **LAST},
        {"steps": 1, "terms": [BCE, SELF], "feed": "mixed", **LAST},
    ]
    b = Bench.of(small, members, phases, logs={"pool": small.encoded}, feeds=feeds)  # the test days are the pool
    b.engine.run(0, b.plan.phases[0])
    (kept,) = b.engine.memories.values()
    assert len(kept.row_id_N) == small.encoded.rows["train"]
    known = int((kept.entered_N > 0).sum())
    b.engine.run(1, b.plan.phases[1])
    (kept,) = b.engine.memories.values()
    assert len(kept.row_id_N) == small.encoded.rows["train"] + small.encoded.rows["test"]
    later = torch.from_numpy(b.engine.feeds["mixed"].parts[1].reader.row_ids())
    assert int((~kept.read(later).isnan()).sum()) == 128 and int((kept.entered_N > 0).sum()) >= known + 128


@pytest.mark.parametrize(
    ("term", "more", "message"),
    [
        ("soft(student.logit, memory(teacher.logits))", {}, "one number is remembered of each row; name a logit"),
        ("l2(student.hidden[-1], memory(teacher.hidden[-1]))", {}, "one number is remembered of each row"),
        ("soft(student.logit, memory(teacher.logit, decay=1))", {}, "decay is a share in [0, 1), found 1"),
        ("soft(student.logit, memory(teacher.logit, decay=-0.1))", {}, "decay is a share in [0, 1)"),
    ],
)
def test_what_cannot_be_remembered_is_named(small: Small, term: str, more: dict[str, Any], message: str) -> None:
    members = {"student": STUDENT, "teacher": OTHER}
    terms = [BCE, "bce(teacher.logit, label)", term]
    found = problems(small, members, [{"steps": 1, "terms": terms}], **more)
    assert any(message in problem for problem in found), found


def test_memories_need_rows_that_come_back_and_ids_that_tell_logs_apart(small: Small, tmp_path: Path) -> None:
    noisy = {"net": {"mlp": [4]}, "view": [], "inputs": ["noise(4)"], "outputs": 1}
    terms = ["l2(gen.logit, memory(gen.logit))"]
    found = problems(
        small, {"student": STUDENT, "gen": noisy},
        [{"steps": 1, "updates": [{"terms": [BCE]}, {"terms": terms, "feed": "z"}]}], feeds={"z": {"noise": 9}},
    )  # fmt: skip
    assert any("rows are remembered, but none of the feed 'z' comes back" in problem for problem in found), found
    spec = yaml.safe_load(Path("feature_specs/marketplace.yaml").read_text())
    del spec["row_id"]
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    more = {"spec": str(tmp_path / "spec.yaml")}
    phases = [{"steps": 1, "terms": [BCE, SELF]}]
    assert problems(small, {"student": STUDENT}, phases, **more) == []  # one log, whose rows are counted
    found = problems(small, {"student": STUDENT}, phases, feeds={"pool": {"log": "x"}}, **more)
    assert len(found) == 1 and "without `row_id` in the feature spec those of each log are only counted" in found[0]
