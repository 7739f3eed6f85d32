"""Combined signals and selectors: what they say for a row, whom they teach, and that nothing depends on the order."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from recdistill.data.batch import Batch, View
from recdistill.distill.combine import SIGNALS, closest, mean, memory, pick, reverse, route, vote, weighted
from recdistill.distill.compile import compile_job, examine
from recdistill.distill.schedule import Now, Schedule, cosine, cycle, ramp
from recdistill.distill.selector import SELECTORS, agrees, any_of, beats, sampled, smallest
from recdistill.distill.signal import Column, Live, Logit, Scene
from recdistill.distill.term import Term
from recdistill.distill.vectors import pad, stack, top
from recdistill.errors import TrainingError
from recdistill.losses.order import pairwise
from recdistill.losses.response import soft
from recdistill.losses.supervised import bce
from recdistill.nets.inputs import Outputs
from recdistill.spec.features import FeatureSpec
from recdistill.spec.job import Job
from tests.distill.test_distill import SPEC

NAN = float("nan")
A, B, C, Y, Z = Logit("a"), Logit("b"), Logit("c"), Column("y"), Column("z")
LABEL = [1.0, 0.0, 1.0, 0.0, NAN, 1.0]
ROUTE = [0.0, 1.0, 2.0, NAN, 0.0, 1.0]


def scene(order: list[int] | None = None, *, step: int = 0, rows: int = 6) -> Scene:
    order = order or list(range(rows))
    generator = torch.Generator().manual_seed(3)
    values = {name: torch.randn(rows, generator=generator) * 2 for name in "abc"}
    view = View("serving", torch.zeros(0, rows, dtype=torch.int64), (), torch.zeros(rows, 0), ())
    labels = {"y": torch.tensor((LABEL * rows)[:rows])[order], "z": torch.tensor((ROUTE * rows)[:rows])[order]}
    batch = Batch((torch.arange(rows) * 7919)[order], view, labels, torch.ones(rows))
    outputs = {n: Outputs(v[order].unsqueeze(1).requires_grad_(), [], v.unsqueeze(1), []) for n, v in values.items()}
    return Scene(outputs, batch, 0, Now(step))


def logits(s: Scene) -> dict[str, Tensor]:
    return {name: out.logits_BK[:, 0].detach() for name, out in s.outputs.items()}


COMBINED = {
    "mean": mean(A, B, C),
    "weighted": weighted(A, B, weights="3 1"),
    "closest": closest(Y, A, B, C),
    "route": route(Z, A, B, C),
    "vote": vote(A, B, C),
    "reverse": reverse(A),
    "live": Live(A),
    "stack": stack(A, Y, stack(B, C)),
    "top": top(stack(A, B, C), keep=2),
    "pad": pad(stack(A, B), before=1, after=2),
    "pick by epoch": pick(A, B, C, by="epoch"),
}


@pytest.mark.parametrize("name", COMBINED)
def test_the_order_of_rows_changes_nothing(name: str) -> None:
    order = [3, 1, 5, 0, 2, 4]
    found, again = COMBINED[name].value(scene())[order], COMBINED[name].value(scene(order))
    assert torch.equal(found.nan_to_num(), again.nan_to_num())
    assert COMBINED[name].members <= {"a", "b", "c"}


def test_means_are_of_log_odds_or_of_probabilities() -> None:
    s = scene()
    found = logits(s)
    assert torch.allclose(mean(A, B).value(s), (found["a"] + found["b"]) / 2)
    probability = (torch.sigmoid(found["a"]) + torch.sigmoid(found["b"])) / 2
    assert torch.allclose(torch.sigmoid(mean(A, B, of="probability").value(s)), probability, atol=1e-6)
    assert torch.allclose(weighted(A, B, weights="3 1").value(s), 0.75 * found["a"] + 0.25 * found["b"])


def test_a_mean_is_softened_as_the_loss_softens_it() -> None:
    s = scene()
    found, target = logits(s), mean(A, B, of="probability", temperature=3).value(s)
    softened = (torch.sigmoid(found["a"] / 3) + torch.sigmoid(found["b"] / 3)) / 2
    assert torch.allclose(torch.sigmoid(target / 3), softened, atol=1e-6)
    assert not torch.allclose(torch.sigmoid(mean(A, B, of="probability").value(s) / 3), softened, atol=1e-3)


def test_by_epoch_each_row_meets_every_signal_in_turn() -> None:
    rows, signals = 300, (A, B, C)
    s = scene(rows=rows)
    seen = torch.stack(
        [pick(*signals, by="epoch").value(Scene(s.outputs, s.batch, 0, Now(5, epoch=e))) for e in range(6)]
    )
    every = torch.stack([signal.value(s) for signal in signals])
    assert torch.equal(seen[:3].sort(0).values, every.sort(0).values)
    assert torch.equal(seen[:3], seen[3:])
    assert 0.25 < float((seen[0] == every[0]).float().mean()) < 0.42


def test_vectors_are_stacked_cut_and_padded() -> None:
    s = scene()
    found = logits(s)
    three = torch.stack([found[n] for n in "abc"], 1)
    kept = top(stack(A, B, C), keep=2).value(s)
    for row, left in zip(three.tolist(), kept.tolist(), strict=True):
        assert left == [x if x != min(row) else 0 for x in row]
    assert torch.equal(pad(stack(A, B, C), before=1, after=2).value(s)[:, 1:4], three)
    assert pad(stack(A, B, C), before=1, after=2).value(s)[:, [0, 4, 5]].abs().sum() == 0
    assert torch.equal(top(stack(A, B, C), keep=9).value(s), three)


def test_any_selects_rows_on_which_one_column_is_1() -> None:
    expected = [label == 1 or way == 1 for label, way in zip(LABEL, ROUTE, strict=True)]
    assert any_of(Y, Z).mask(scene()).tolist() == expected


def test_at_the_rate_of_a_label_a_logit_speaks_for_as_many_clicks() -> None:
    s = scene(rows=300)
    rare = Column("y")
    s.batch.labels["y"][:] = torch.tensor([1.0] + 9 * [0.0]).repeat(30)
    found, label = logits(s)["a"], s.batch.labels["y"]
    expected = (found > found.sort().values[270 - 1]) == (label == 1)
    assert torch.equal(agrees(A, rare, rate=rare).mask(s), expected)
    assert agrees(A, rare, rate=rare).in_batch and not agrees(A, rare).in_batch
    s.batch.labels["y"][:] = NAN
    assert not agrees(A, B, rate=rare).mask(s).any()


def test_what_a_target_says_of_rows_that_take_no_part_changes_nothing() -> None:
    s = scene()
    poisoned = s.outputs["b"]._replace(
        logits_BK=torch.where(torch.tensor([[0.0], [1], [0], [0], [0], [1]]) == 1, NAN, 1.0)
    )
    other = Scene({**s.outputs, "b": poisoned}, s.batch)
    term = Term("t", soft, A, (B,), rows=any_of(Column("part")))
    s.batch.labels["part"] = torch.tensor([1.0, 0, 1, 1, 1, 0])
    loss, weight = term.losses(other)
    (gradient,) = torch.autograd.grad((loss * weight).sum(), s.outputs["a"].logits_BK)
    assert torch.isfinite(gradient).all() and (gradient[:, 0] != 0).tolist() == [True, False, True, True, True, False]


def test_a_loss_within_a_batch_sees_the_rows_that_take_part_alone() -> None:
    s = scene()
    loss, weight = Term("t", pairwise, A, (Y,), in_batch=True).losses(s)
    known = [0, 1, 2, 3, 5]
    assert torch.equal(weight, torch.ones(5))
    assert torch.allclose(loss, pairwise(A.value(s)[known], torch.tensor(LABEL)[known]))


def test_closest_route_and_vote_choose_row_by_row() -> None:
    s = scene()
    found = logits(s)
    picked, routed, voted = (COMBINED[name].value(s).detach() for name in ("closest", "route", "vote"))
    for i, (label, way) in enumerate(zip(LABEL, ROUTE, strict=True)):
        row = {name: float(value[i]) for name, value in found.items()}
        average = sum(row.values()) / 3
        best = max(row.values()) if label == 1 else min(row.values())
        assert float(picked[i]) == pytest.approx(average if math.isnan(label) else best)
        assert float(routed[i]) == pytest.approx(average if math.isnan(way) else row["abc"[int(way)]])
        share = (sum(value > 0 for value in row.values()) + 0.5) / 4
        assert float(voted[i]) == pytest.approx(math.log(share / (1 - share)), abs=1e-5)


def test_a_reversed_signal_teaches_the_opposite() -> None:
    s = scene()
    leaf = s.outputs["a"].logits_BK
    (plain,) = torch.autograd.grad(A.value(s).pow(2).sum(), leaf)
    (turned,) = torch.autograd.grad(reverse(A, scale=0.5).value(s).pow(2).sum(), leaf)
    assert torch.allclose(turned, -0.5 * plain)
    assert torch.equal(reverse(A).value(s), A.value(s))


def test_a_combined_target_receives_no_gradient() -> None:
    s = scene()
    term = Term("t", soft, A, (mean(B, C),))
    loss, _ = term.losses(s)
    gradients = torch.autograd.grad(loss.sum(), [s.outputs[n].logits_BK for n in "abc"], allow_unused=True)
    assert gradients[0] is not None and gradients[1:] == (None, None)
    assert term.members == {"a", "b", "c"} and term.taught == {"a"}


def test_agrees_and_beats_look_at_labels_and_sides() -> None:
    s = scene()
    found = logits(s)
    for i, label in enumerate(LABEL):
        same = (found["a"][i] > 0) == (label == 1) and not math.isnan(label)
        assert bool(agrees(A, Y).mask(s)[i]) == bool(same)
        assert bool(agrees(A, B).mask(s)[i]) == bool((found["a"][i] > 0) == (found["b"][i] > 0))
        better = float(bce(found["a"], torch.tensor(LABEL))[i]) + 0.1 < float(bce(found["b"], torch.tensor(LABEL))[i])
        assert bool(beats(A, B, Y, margin=0.1).mask(s)[i]) == (better and not math.isnan(label))


def test_what_is_not_remembered_agrees_with_nothing() -> None:
    class Store:
        def read(self, row_id_B: Tensor) -> Tensor:
            return torch.tensor([1.0, -1.0, NAN, NAN, NAN, 2.0])[: len(row_id_B)]

    remembered = memory(B)
    s = replace(scene(), memories={remembered.key: Store()})
    assert agrees(remembered, Y).mask(s).tolist() == [True, True, False, False, False, True]
    assert agrees(Y, remembered).mask(s).tolist() == [True, True, False, False, False, True]
    assert not bool(beats(A, remembered, Y).mask(s)[2:5].any())


@pytest.mark.parametrize("keep", [cycle(1, -0.5, over=100), ramp(1, 0, over=0.5), cycle(1.5, 0.5, over=300)])
def test_a_share_that_is_none_at_some_step_is_refused(keep: Schedule) -> None:
    measured = Term("bce(a.logit, y)", bce, A, (Y,))
    with pytest.raises(TrainingError, match=r"keeps a share in \(0, 1\] of the rows, found .* at step \d+"):
        smallest(measured, keep=keep)


def test_smallest_keeps_the_easiest_labelled_rows() -> None:
    s = scene(rows=60)
    measured = Term("m", bce, B, (Y,))
    chosen = smallest(measured, keep=0.4).mask(s)
    loss, known = (value.detach() for value in measured.losses(s))
    assert int(chosen.sum()) == math.ceil(0.4 * int((known > 0).sum()))
    assert float(loss[chosen].max()) <= float(loss[~chosen & (known > 0)].min())
    assert not bool(chosen[known == 0].any())
    term = Term("t", bce, A, (Y,), rows=smallest(measured, keep=0.4))
    assert term.members == {"a", "b"} and term.taught == {"a"}
    value, weight = term.losses(s)
    (gradient,) = torch.autograd.grad((value * weight).sum(), [s.outputs["b"].logits_BK], allow_unused=True)
    assert gradient is None  # what selects is not taught


def test_sampled_rows_follow_row_and_step_not_order() -> None:
    first = sampled(0.5).mask(scene(rows=4000))
    assert 0.46 < float(first.float().mean()) < 0.54
    order = torch.randperm(4000).tolist()
    assert torch.equal(sampled(0.5).mask(scene(order, rows=4000)), first[order])
    assert not torch.equal(sampled(0.5).mask(scene(rows=4000, step=1)), first)


def test_a_cosine_is_level_at_both_ends() -> None:
    schedule = cosine(2, 0, over=0.5, begin=0.1)
    found = [schedule.weight(Now(k)) for k in (0, 100, 350, 600, 999)]
    assert found == pytest.approx([2, 2, 1, 0, 0])
    assert abs(schedule.weight(Now(110)) - 2) < 0.01
    with pytest.raises(TrainingError, match="over must be positive"):
        cosine(0, 1, over=0)


def job(term: str) -> Job:
    members = {
        "student": {"net": {"mlp": [4]}, "serve": True, "dim": 4},
        "teacher": {"net": {"mlp": [4]}, "dim": 4},
    }
    terms = ["bce(student.logit, y)", "bce(teacher.logit, y)", term]
    return Job.model_validate(
        {"spec": "-", "log": "-", "label": "y", "members": members, "phases": [{"steps": 5, "terms": terms}]}
    )


@pytest.mark.parametrize(
    "term",
    [
        "soft(student.logit, mean(teacher.logit, student.logit, of='probability')) * cosine(0, 1, over=0.5)",
        "soft(student.logit, weighted(teacher.logit, student.logit, weights='2 1'))",
        "soft(student.logit, pick(y, teacher.logit, student.logit)).rows(present(y))",
        "soft(student.logit, live(mean(teacher.logit, student.logit)))",
        "soft(student.logit, vote(teacher.logit, student.logit)).rows(sampled(0.3))",
        "soft(student.logit, teacher.logit).rows(agrees(teacher.logit, y))",
        "soft(student.logit, teacher.logit).rows(beats(teacher.logit, student.logit, y, margin=0.1))",
        "bce(student.logit, y).rows(smallest(bce(teacher.logit, y), keep=0.8))",
        "l2(reverse(student.hidden[-1]), teacher.hidden[-1])",
        "bce(student.logits, pad(top(probability(teacher.logits), keep=1))).rows(any(y))",
        "bce(student.logits, stack(y))",
        "soft(student.logit, mean(teacher.logit, student.logit, of='probability', temperature=2), temperature=2)",
        "soft(student.logit, pick(teacher.logit, student.logit, by='epoch')).rows(agrees(teacher.logit, y, rate=y))",
        "relative_order(student.hidden[-1], teacher.hidden[-1], student.hidden[-1], margin=0.1)",
    ],
)
def test_the_words_compile(term: str) -> None:
    plan, problems = examine(job(term), SPEC if isinstance(SPEC, FeatureSpec) else FeatureSpec.model_validate(SPEC))
    assert problems == [] and plan is not None


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ("soft(student.logit, mean())", "mean: takes at least one signal"),
        ("soft(student.logit, mean(teacher.logit, of='odds'))", "of is 'odds'; expected one of logit, probability"),
        ("soft(student.logit, weighted(teacher.logit, weights='1 2'))", "expected 1 positive numbers as weights"),
        ("soft(student.logit, weighted(teacher.logit, weights=2))", "expected a text, found 2"),
        (
            "soft(student.logit, closest(teacher.logit, student.logit))",
            "a raw binary column, found teacher.logit",
        ),
        ("soft(student.logit, vote(teacher.logit))", "takes at least two; found 1"),
        ("soft(student.logit, reverse(teacher.logit, scal=2))", "unexpected keyword argument 'scal'"),
        ("bce(student.logit, y).rows(smallest(teacher.logit, keep=0.5))", "expected a loss such as bce"),
        ("bce(student.logit, y).rows(smallest(bce(teacher.logit, y), keep=2))", "keeps a share in (0, 1]"),
        ("bce(student.logit, y).rows(sampled(y))", "expected a number, found"),
        ("bce(student.logit, corrected(y, student.logit, most=2))", "most is a share in [0, 1]"),
        ("bce(student.logit, corrected(y, student.logit, trust='f1'))", "trust is 'f1'; expected one of accuracy"),
        ("bce(student.logit, corrected(teacher.logit, student.logit))", "expected a raw binary column"),
        ("bce(student.logit, unflipped(y, false_positive=0.6, false_negative=0.4))", "two shares whose sum is below 1"),
        ("bce(student.logit, first_known())", "first_known: takes at least one label"),
        ("bce(student.logit, hedged(y, teacher.logit))", "hedged: expected first_known(verified, reported), found y"),
        ("bce(student.logit, probability(unify(teacher.logit, student.logits)))", "unify: takes the logits of members"),
        ("bce(student.logits, unify(teacher.logits, by='mean'))", "by is 'mean'; expected one of logit, cross_entropy"),
        (
            "bce(among(student.logits, teacher.logit), y)",
            "among: expected the logits of a member that knows all labels",
        ),
        ("bce(student.logit, y).rows(agrees(teacher.logit))", "missing a required argument: 'second'"),
        ("bce(student.logit, y).rows(any())", "takes at least one binary column"),
        ("bce(student.logit, y).rows(any(teacher.logit))", "expected a raw binary column"),
        ("bce(student.logits, top(teacher.logits, keep=0))", "keep is a positive whole number, found 0"),
        ("bce(student.logits, pad(teacher.logits, after=1))", "the learner has shape (2, 1), its target (2, 2)"),
        ("soft(student.logit, mean(teacher.logit, temperature=0))", "temperature must be positive, found 0"),
        (
            "soft(student.logit, pick(teacher.logit, student.logit, by='epoch', weights='1 2'))",
            "takes no weights; found '1 2'",
        ),
        ("relative_order(student.hidden[-1], teacher.logit)", "compares layers (B, H) of the same rows"),
        ("relative_order(student.hidden[-1])", "needs a teacher"),
    ],
)
def test_mistakes_are_named(term: str, message: str) -> None:
    _, problems = examine(job(term), SPEC)
    assert len(problems) == 1 and message in problems[0], problems


@pytest.mark.parametrize("graph", ["1 0", "1 0; 0 a", "1 0; 0 0", "1 0; -1 2", "1; 0"])
def test_a_graph_that_is_none_is_refused(graph: str) -> None:
    spec = SPEC.model_copy(update={"scenario": "user"})
    _, problems = examine(
        job(f"soft(student.logit, smoothed(teacher.logit, by=scenario, values='a b', graph='{graph}'))"), spec
    )
    assert len(problems) == 1 and "expected 2 lines of 2 numbers" in problems[0]


def of_copies(*terms: str, **members: Any) -> Job:
    described = {
        "student": {"net": {"mlp": [4]}, "serve": True, "dim": 4},
        "expert": {"net": {"mlp": [4]}, "copies": 3, "dim": 4},
    }
    phase = {"steps": 5, "terms": ["bce(expert[:].logit, y)", *terms]}
    return Job.model_validate(
        {"spec": "-", "log": "-", "label": "y", "members": {**described, **members}, "phases": [phase]}
    )


def test_each_makes_a_term_for_each_text() -> None:
    term = "soft(student.logit, expert[:].logit) * behind(1, 0, student.auc, expert[:].auc, scenario=each('a b c'))"
    spec = SPEC.model_copy(update={"scenario": "user"})
    plan = compile_job(of_copies("bce(student.logit, y)", term), spec)
    weights = [found.schedules[0] for found in plan.phases[0].terms[4:]]
    assert [[metric.key for metric in w.metrics] for w in weights] == [
        [f"student.auc@{s}", f"expert_{k}.auc@{s}"] for k, s in enumerate("abc")
    ]
    alone = compile_job(
        of_copies("bce(student.logit, y) * behind(1, 0, student.auc, student.auc, scenario=each('a b'))"), spec
    )
    assert len(alone.phases[0].terms) == 3 + 2
    problems = examine(of_copies("bce(student.logit, y)", term.replace("a b c", "a b")), spec)[1]
    assert len(problems) == 1 and "each() names [2] texts for 3 copies" in problems[0]


def test_others_are_all_copies_but_the_one_that_is_taught() -> None:
    term = "soft(expert[:].logit, mean(others(expert[:].logit)))"
    plan = compile_job(of_copies("bce(student.logit, y)", f"{term}.rows(agrees(others(expert[:].logit)))"), SPEC)
    for k, found in enumerate(plan.phases[0].terms[4:]):
        others = {f"expert_{j}" for j in range(3) if j != k}
        assert found.targets[0].members == others and found.rows is not None and found.rows.members == others
    problems = examine(of_copies("bce(student.logit, y)", "soft(student.logit, others(expert[:].logit))"), SPEC)[1]
    assert len(problems) == 1 and "unknown signal 'others'" not in problems[0], problems


def test_a_member_without_parameters_is_not_taught_but_lets_gradients_through() -> None:
    whole = {"net": "average", "view": [], "inputs": "live(expert[:].logit)"}
    plan = compile_job(of_copies("bce(student.logit, y)", "bce(whole.logit, y)", whole=whole), SPEC)
    assert plan.phases[0].trained == {"student", "expert_0", "expert_1", "expert_2"}
    problems = examine(
        of_copies("bce(student.logit, y)", "bce(whole.logit, y)", whole={**whole, "inputs": "expert[:].logit"}), SPEC
    )[1]
    assert any("teaches ['whole'], none of whom moves" in problem for problem in problems)


def test_every_word_has_a_docstring() -> None:
    words: dict[str, Any] = {**SIGNALS, **SELECTORS}
    assert [name for name, word in words.items() if not word.__doc__] == []
