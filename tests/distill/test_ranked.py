"""Signals over candidates: scores, marks, and what is left out; each against loops over anchors and candidates."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from recdistill.data.batch import Batch, Candidates, View
from recdistill.data.reader import take_anchors
from recdistill.distill.combine import Live, shuffled
from recdistill.distill.ranked import Mark, Scores, hardest, is_ranked, permuted, untaken
from recdistill.distill.signal import Logit, Scene
from recdistill.distill.term import Term
from recdistill.errors import SpecError, TrainingError
from recdistill.losses.ranking import bpr
from recdistill.losses.ranking_distillation import soft_sides
from recdistill.nets.inputs import Outputs
from recdistill.spec.controls import arms
from recdistill.spec.load import assign, parse_job
from tests.conftest import Small
from tests.training.bench import problems_of_job

A, R, D = 4, 9, 3  # anchors, rows, width
NAN = float("nan")
GCN, STUDENT = Scores("gcn"), Scores("student")


def scene(anchor: str = "user") -> Scene:
    """Four anchors with one candidate each of their own, two drawn for each, and two that all share."""
    generator = torch.Generator().manual_seed(0)
    outputs = {}
    for name in ("gcn", "student"):
        hidden = [torch.randn(R, D, generator=generator).requires_grad_() for _ in range(4)]
        outputs[name] = Outputs((hidden[-2] * hidden[-1]).sum(1, keepdim=True), hidden, hidden[0], [])
    own, drawn, common = (
        torch.tensor([[4], [5], [6], [4]]), torch.tensor([[7, 8], [4, 6], [7, 7], [5, 8]]), torch.tensor([6, 8])
    )  # fmt: skip
    marks = {
        "own": torch.tensor([[1.0, 0, 0, 0, 0]] * 3 + [[1.0, NAN, 0, NAN, 0]]),
        "taken": torch.tensor([[1.0, 0, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 0, 1, NAN], [1, 0, 0, 0, 0]]),
        "log_q": torch.zeros(A, 5),
    }
    view = View("serving", torch.zeros(0, R, dtype=torch.int64), (), torch.zeros(R, 0), ())
    row_id_B = torch.tensor([11, 5, 8, 3, -5, -6, -7, -8, -9])
    weight_B = torch.tensor([1.0] * A + [0.0] * (R - A))
    batch = Batch(row_id_B, view, {}, weight_B, candidates=Candidates(anchor, (own, drawn, common), marks))
    return Scene(outputs, batch)


def row_of(s: Scene, a: int, m: int) -> int:
    """The row of a candidate."""
    ranked, places = s.batch.ranked(), []
    for part in ranked.parts:
        places += (part if part.dim() == 1 else part[a]).tolist()
    return int(places[m])


def by_hand(s: Scene, member: str, order: list[int] | None = None) -> Tensor:
    """Scores by loops; each anchor with the vector of the one in its place of an order."""
    user_BD, item_BD = s.outputs[member].hidden[-2:]
    mine_BD, other_BD = (user_BD, item_BD) if s.batch.ranked().anchor == "user" else (item_BD, user_BD)
    order = order or list(range(A))
    found = [[(mine_BD[order[a]] * other_BD[row_of(s, a, m)]).sum() for m in range(5)] for a in range(A)]
    return torch.stack([torch.stack(row) for row in found])


@pytest.mark.parametrize("anchor", ["user", "item"])
def test_scores_are_inner_products_of_the_last_two_taps(anchor: str) -> None:
    s = scene(anchor)
    assert torch.allclose(GCN.value(s), by_hand(s, "gcn"), atol=1e-6)
    assert GCN.members == {"gcn"} and str(GCN) == "gcn.scores"


def test_permuted_every_anchor_has_the_vector_of_another_one_whatever_its_place() -> None:
    s = scene()
    found = permuted(GCN).value(s)
    each = {a: [b for b in range(A) if torch.allclose(found[a], by_hand(s, "gcn", [b] * A)[a])] for a in range(A)}
    assert all(len(whose) == 1 and whose != [a] for a, whose in each.items())
    assert {whose[0] for whose in each.values()} == {*range(A)}
    ids = s.batch.row_id_B[:A].tolist()
    turned = [2, 0, 3, 1]
    again = permuted(GCN).value(
        replace(s, batch=take_anchors(s.batch, torch.tensor(turned)), outputs=rolled(s, turned))
    )
    assert torch.allclose(again, found[turned]) and len({*ids}) == A


def rolled(s: Scene, order: list[int]) -> dict[str, Outputs]:
    """Outputs of the anchors in another order."""
    rows = [*order, *range(A, R)]
    return {n: replace_hidden(o, [h[rows] for h in o.hidden]) for n, o in s.outputs.items()}


def replace_hidden(outputs: Outputs, hidden: list[Tensor]) -> Outputs:
    return Outputs(outputs.logits_BK, hidden, outputs.embed_BE, outputs.attention)


def test_what_is_permuted_is_permuted_wherever_it_stands() -> None:
    s = scene()
    for made in (untaken(GCN), Live(GCN), hardest(GCN, count=1)):
        inside = permuted(made)
        assert "permuted=True" in repr(inside) and "permuted=True" not in repr(made)
    assert torch.equal(shuffled(GCN).value(s), permuted(GCN).value(s))
    assert permuted(Logit("gcn")) == Logit("gcn") and not is_ranked(Logit("gcn")) and is_ranked(untaken(GCN))


def test_only_what_is_known_not_to_be_taken_is_left_by_untaken() -> None:
    s = scene()
    found, scores, taken = untaken(GCN).value(s), by_hand(s, "gcn"), s.batch.ranked().marks["taken"]
    for a in range(A):
        for m in range(5):
            left = float(taken[a, m]) == 0
            assert torch.isclose(found[a, m], scores[a, m]) if left else bool(found[a, m].isnan())


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_the_hardest_negatives_are_those_that_a_member_ranks_highest(count: int) -> None:
    s = scene()
    found, own, scores = hardest(STUDENT, count=count).value(s), s.batch.ranked().marks["own"], by_hand(s, "student")
    for a in range(A):
        is_negative, is_kept = own[a] == 0, found[a] == 0
        assert not bool((is_kept & ~is_negative).any())
        assert torch.equal(found[a, ~is_negative].nan_to_num(5), own[a, ~is_negative].nan_to_num(5))
        assert bool(found[a, is_negative & ~is_kept].isnan().all())
        best = scores[a, is_negative].sort(descending=True).values[:count]
        assert torch.allclose(scores[a, is_kept].sort(descending=True).values, best)
    assert not found.requires_grad
    with pytest.raises(TrainingError, match="positive whole number"):
        hardest(STUDENT, count=0)
    for made in (untaken, hardest):
        with pytest.raises(TrainingError, match="has one value a row"):
            made(Logit("gcn"))


def test_a_mark_that_the_feed_does_not_tell_is_asked_for_in_vain() -> None:
    assert torch.equal(Mark("own").value(scene()).nan_to_num(5), scene().batch.ranked().marks["own"].nan_to_num(5))
    with pytest.raises(TrainingError, match="give it `groups`"):
        Mark("popularity").value(scene())


def test_a_term_over_candidates_has_one_value_an_anchor_and_teaches_the_learner_alone() -> None:
    s = scene()
    loss, weight = Term("soft_sides", soft_sides, STUDENT, (GCN, Mark("taken"))).losses(s)
    assert loss.shape == weight.shape == (A,) and weight.tolist() == [1.0] * A
    loss.sum().backward()
    taught, target = (s.outputs[name].hidden for name in ("student", "gcn"))
    assert all(tap.grad is None for tap in [*target, *taught[:2]])
    assert taught[2].grad is not None and bool(taught[2].grad[:A].any()) and not bool(taught[2].grad[A:].any())
    loss, _ = Term("bpr", bpr, STUDENT, (Mark("own"),)).losses(s)
    scores, own = by_hand(s, "student"), s.batch.ranked().marks["own"]
    for a in range(A):
        gaps = [scores[a, 0] - scores[a, m] for m in range(5) if float(own[a, m]) == 0]
        assert torch.isclose(
            loss[a], torch.stack([torch.nn.functional.softplus(-gap) for gap in gaps]).mean(), atol=1e-6
        )


TWO = [{"feed": "pairs", "terms": ["bpr(gcn.scores, own)"]}, {"feed": "lists", "terms": ["bpr(student.scores, own)"]}]
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a row's score": ({"phases.0.terms": ["bpr(gcn.logit, own)"]}, "own"),
    "a column": ({"phases.0.terms": ["bce(gcn.logit, label)"]}, "candidates have none"),
    "groups": ({"phases.0.terms": ["unkd(gcn.scores, student.scores, popularity)"]}, "popularity"),
    "parts of a batch": ({"train.micro_batch": 16}, "remove train.micro_batch"),
    "no candidates": ({"phases.0.feed": "log"}, "scores"),
    "a loss of rows": (
        {"phases.1.terms": ["soft_list(student.scores, gcn.scores)"]},
        "soft_list compares rows of a log, not the candidates of anchors; did you mean 'soft_sides'?",
    ),
    "another loss of rows": (
        {"phases.1.terms": ["score_gap(student.scores)"]},
        "score_gap compares rows of a log, not the candidates of anchors; known: bpr, sampled_softmax, soft_sides",
    ),
    "what moves": ({"feeds.lists.candidates.ranked": {"by": "student", "top": 9, "count": 2}}, "moves in the phase of"),
    "what another update moves": (
        {
            "feeds.lists.candidates.ranked": {"by": "gcn", "top": 9, "count": 2},
            "phases.1": {"steps": 3, "updates": TWO},
        },
        "moves in the phase of",
    ),
    "who is not there": ({"feeds.lists.candidates.ranked": {"by": "gcm", "top": 9, "count": 2}}, "did you mean 'gcn'"),
    "several copies": (
        {
            "members.gcn.copies": 2,
            "phases.0.terms": ["bpr(gcn[:].scores, own)"],
            "phases.1.terms": ["bpr(student.scores, own)"],
            "feeds.lists.candidates.ranked": {"by": "gcn", "top": 9, "count": 2},
        },
        "not a single member",
    ),
    "no graph": ({"graph": None, "ranking": None}, "needs users and items"),
    "another graph": ({"members.gcn.net.light_gcn.item": "genre", "members.gcn.view": "serving"}, "of the job's graph"),
    "serving graph": ({"members.gcn.serve": True, "members.student.serve": False}, "let a student serve"),
    "no ranking": ({"ranking": None, "train.stop": {"monitor": "recall@5"}}, "say how they are judged"),
    "a metric": ({"ranking.metric": "recall@7"}, "recall@5"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_candidates_cannot_do_is_refused_before_training(tastes: Small, name: str) -> None:
    changes, message = REFUSED[name]
    assert problems_of_job(tastes.job) == []
    assert any(message in problem for problem in problems_of_job(tastes.job, changes)), problems_of_job(
        tastes.job, changes
    )


def test_a_plain_control_without_any_candidates_is_refused(tastes: Small) -> None:
    ranked = {"feeds.lists.candidates": {"negatives": 0, "ranked": {"by": "gcn", "top": 9, "count": 2}}}
    job, _ = parse_job(assign(tastes.job, ranked, "test"), "test")
    with pytest.raises(SpecError, match=r"anchors of feeds\.lists have no candidates besides their own"):
        arms(job)
    job, _ = parse_job(assign(tastes.job, {**ranked, "feeds.lists.candidates.in_batch": True}, "test"), "test")
    (plain,) = [arm for arm in arms(job) if arm.name == "plain"]
    spec = plain.job.feeds["lists"].candidates
    assert spec is not None and spec.ranked is None and [*plain.job.members] == ["student"]


@pytest.mark.parametrize(("top", "message"), [(3, None), (6, "found 6; draw candidates accordingly")])
def test_ranks_are_estimated_from_the_candidates_that_the_feed_really_draws(
    tastes: Small, top: int, message: str
) -> None:
    term = f"rd(student.scores, untaken(gcn.scores), top={top}, discrepancy=0.1, items=52)"
    feed = {"negatives": 1, "ranked": {"by": "gcn", "top": 9, "count": 4}}
    found = problems_of_job(tastes.job, {"phases.1.terms": [term], "feeds.lists.candidates": feed})
    assert (found == []) if message is None else [message in problem for problem in found] == [True]
