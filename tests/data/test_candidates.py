"""Anchors with candidates: who is visited, what is drawn, what is known of each candidate, and what it depends on."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as tried
from hypothesis import strategies as st
from torch import Tensor

from recdistill.data.batch import Batch
from recdistill.data.candidates import NODE, CandidateFeed
from recdistill.data.catalogue import Catalogue
from recdistill.data.graph import Graph
from recdistill.data.reader import take_anchors
from recdistill.data.transforms.rows import FIRST
from recdistill.errors import LogError, TrainingError
from recdistill.spec.graph import CandidatesSpec, Ranked
from recdistill.training.feeds import Cursor
from tests.conftest import Small
from tests.data.test_negatives import graph_of, skewed

EDGES = st.sets(st.tuples(st.integers(2, 7), st.integers(2, 12)), min_size=1, max_size=20)


@pytest.fixture(scope="module")
def catalogue(tastes: Small) -> Catalogue:
    return Catalogue.of(tastes.encoded, {"user": ["user_id", "region"], "item": ["item_id", "genre"]}, ("train",))


def feed_of(catalogue: Catalogue, graph: Graph, **options: Any) -> CandidateFeed:
    given_order = options.pop("order", None)
    spec = CandidatesSpec.model_validate(options)
    return CandidateFeed(graph, catalogue, spec, ("user_id", "item_id"), ("chosen",), given_order)


def taken_by(graph: Graph, anchor: str) -> dict[int, set[int]]:
    """What each anchor has taken, from the edges alone."""
    found: dict[int, set[int]] = {}
    for user, item in zip(graph.user_E.tolist(), graph.item_E.tolist(), strict=True):
        a, b = (user, item) if anchor == "user" else (item, user)
        found.setdefault(a, set()).add(b)
    return found


def candidates(batch: Batch, anchor: str) -> tuple[list[int], Tensor]:
    """The anchors and the rows of the table of their candidates, (A, M), as a member would look them up."""
    ranked = batch.ranked()
    names = ("user_id", "item_id") if anchor == "user" else ("item_id", "user_id")
    anchor_B, other_B = batch.serving.ids(names)
    parts = [other_B[part].expand(ranked.anchors, -1) for part in ranked.parts]
    return anchor_B[: ranked.anchors].tolist(), torch.cat(parts, 1)


@tried(max_examples=60)
@given(
    edges=EDGES, anchor=st.sampled_from(["user", "item"]), each=st.sampled_from(["edge", "node"]),
    positives=st.integers(0, 2), shared=st.booleans(), in_batch=st.booleans(), batch=st.integers(1, 9),
    seed=st.integers(0, 5), popularity=st.sampled_from([0.0, 0.75]),
)  # fmt: skip
def test_candidates_are_what_was_asked_for_and_marked_as_what_they_are(
    catalogue, edges, anchor, each, positives, shared, in_batch, batch, seed, popularity
) -> None:
    graph = Graph.of(9, 14, *(torch.tensor(side) for side in zip(*sorted(edges), strict=True)))
    taken, everybody = taken_by(graph, anchor), {*(graph.item_E if anchor == "user" else graph.user_E).tolist()}
    options = {"positives": positives, "negatives": 3, "shared": shared, "in_batch": in_batch}
    if popularity and not shared and any(everybody == mine for mine in taken.values()):
        return  # refused: see below
    feed = feed_of(catalogue, graph, anchor=anchor, each=each, batch=batch, popularity=popularity, **options)
    visited = []
    for found in feed.epoch(1000, seed=seed, epoch=1):
        anchors, item_AM = candidates(found, anchor)
        marks = found.ranked().marks
        width = 1 + positives + 3 + (len(anchors) if in_batch else 0)
        assert item_AM.shape == (len(anchors), width) and feed.spec.width == 4 + positives
        assert {mark.shape for mark in marks.values()} == {item_AM.shape}
        for a, who in enumerate(anchors):
            items = item_AM[a].tolist()
            assert bool((item_AM[a] >= FIRST).all())
            assert [bool(t) for t in marks["taken"][a]] == [item in taken[who] for item in items]
            own = marks["own"][a].tolist()
            assert own[0] == 1 and items[0] in taken[who] and {*items[1 : 1 + positives]} <= taken[who]
            assert all(math.isnan(value) for value in own[1 : 1 + positives])
            others = range(1 + positives, width)
            assert all((own[k] == 0) == (items[k] not in taken[who]) for k in others)
            assert all(own[k] == 0 or math.isnan(own[k]) for k in others)
        lone_B = found.weight_B
        assert lone_B.tolist() == [1.0] * len(anchors) + [0.0] * (len(found) - len(anchors))
        assert len(found.row_id_B.unique()) == len(found)
        pairs = zip(anchors, item_AM[:, 0].tolist(), strict=True)
        visited += (
            [who for who, _ in pairs] if each == "node" else list(zip(anchors, item_AM[:, 0].tolist(), strict=True))
        )
    everything = [*taken] if each == "node" else [(a, b) for a, mine in taken.items() for b in mine]
    assert sorted(visited) == sorted(everything)
    assert len(visited) == feed.rows() and feed.steps(1000) == math.ceil(len(visited) / batch)


def by_anchor(batches: list[Batch], anchor: str) -> dict[int, tuple[list[int], dict[str, list[float]]]]:
    """Of each anchor, by its id, the candidates and their marks."""
    found = {}
    for batch in batches:
        _, item_AM = candidates(batch, anchor)
        ranked = batch.ranked()
        for a, row_id in enumerate(batch.row_id_B[: ranked.anchors].tolist()):
            marks = {name: mark[a].nan_to_num(-1).tolist() for name, mark in ranked.marks.items()}
            found[row_id] = (item_AM[a].tolist(), marks)
    return found


@pytest.mark.parametrize("each", ["edge", "node"])
@pytest.mark.parametrize("anchor", ["user", "item"])
def test_draws_depend_on_seed_epoch_and_anchor_but_not_on_the_batch(catalogue, anchor, each) -> None:
    graph = skewed(20, 30)
    order = torch.arange(2, 12).repeat(30, 1)
    options = {"anchor": anchor, "each": each, "positives": 1, "negatives": 2, "popularity": 0.5, "groups": 3}
    options |= {"ranked": {"by": "gcn", "top": 10, "count": 3}, "order": order}
    one, other = (feed_of(catalogue, graph, batch=size, **options) for size in (64, 7))
    found = by_anchor(list(one.epoch(0, seed=1, epoch=2)), anchor)
    assert found == by_anchor(list(other.epoch(0, seed=1, epoch=2)), anchor)
    assert sorted(found) == sorted(one.row_ids().tolist())
    for seed, epoch in ((2, 2), (1, 3)):
        assert found != by_anchor(list(one.epoch(0, seed=seed, epoch=epoch)), anchor)
    parts = [
        take_anchors(batch, torch.arange(rank, batch.ranked().anchors, 3))
        for batch in one.epoch(0, seed=1, epoch=2)
        for rank in range(3)
    ]  # what three processes have
    assert by_anchor(parts, anchor) == found


def test_the_ids_of_nodes_are_no_ids_of_edges(catalogue) -> None:
    graph = skewed(20, 30)
    edges, nodes = (feed_of(catalogue, graph, each=each).row_ids() for each in ("edge", "node"))
    assert len(edges) == len(graph.user_E) and bool((nodes >= NODE).all()) and int(edges.max()) < NODE


@pytest.mark.parametrize("popularity", [0.0, 0.75])
@pytest.mark.parametrize("shared", [True, False])
def test_the_correction_of_draws_is_their_expected_number(catalogue, popularity, shared) -> None:
    graph = skewed(20, 30)
    feed = feed_of(catalogue, graph, negatives=4, popularity=popularity, shared=shared, batch=8)
    weight = graph.item_degree_I.double() ** popularity
    weight[:FIRST] = 0
    for batch in feed.epoch(0, seed=0, epoch=0):
        anchors, item_AM = candidates(batch, "user")
        for a, who in enumerate(anchors):
            left = weight.clone()
            if not shared:
                left[[*taken_by(graph, "user")[who]]] = 0
            expected = (4 * weight[item_AM[a, 1:]] / left.sum()).log().float()
            assert torch.allclose(batch.ranked().marks["log_q"][a, 1:], expected, atol=1e-5)
        assert not bool(batch.ranked().marks["log_q"][:, 0].any())  # one's own is there for certain


@pytest.mark.parametrize(("each", "epochs"), [("edge", 1), ("node", 600)])
@pytest.mark.parametrize("anchor", ["user", "item"])
def test_the_correction_in_a_batch_is_how_often_an_item_stands_there(catalogue, anchor, each, epochs) -> None:
    """Of every edge an item stands there as often as it is taken; of every node less often beside long lists."""
    graph = graph_of([(2, i) for i in range(2, 22)] + [(u, i) for u in range(3, 20) for i in (2, 3)], 20, 22)
    feed = feed_of(catalogue, graph, anchor=anchor, each=each, negatives=0, in_batch=True, batch=10**6)
    met = torch.zeros(feed.sides.items)
    for epoch in range(epochs):
        (batch,) = feed.epoch(0, seed=0, epoch=epoch)
        anchors, item_AM = candidates(batch, anchor)
        met += torch.bincount(item_AM[:, 0], minlength=len(met)) / epochs
    log_q_AA, item_A = batch.ranked().marks["log_q"][:, 1:], item_AM[:, 0]
    apart = ~torch.eye(len(anchors), dtype=torch.bool)
    expected_AA = ((len(anchors) - 1) / len(anchors) * met[item_A]).expand(len(anchors), -1)
    assert bool((log_q_AA.diagonal() == 0).all())
    if each == "edge":
        assert torch.allclose(log_q_AA[apart].exp(), expected_AA[apart], rtol=1e-5)
        return
    wrong = ((len(anchors) - 1) * graph_share(feed)[item_A]).expand(len(anchors), -1)
    noise = 5 * (expected_AA / epochs).sqrt()
    assert bool(((log_q_AA.exp() - expected_AA).abs() <= noise)[apart].all())
    assert bool(((wrong - expected_AA).abs() > noise)[apart].any())  # by shares of edges they would not be


def graph_share(feed: CandidateFeed) -> Tensor:
    """The share of each candidate in the edges."""
    return feed.sides.item_degree_I / len(feed.sides.item_E)


def test_candidates_from_a_ranking_stand_in_it_and_nobody_is_given_what_is_not_there(catalogue) -> None:
    graph = skewed(20, 30)
    order = torch.stack([torch.randperm(26, generator=torch.Generator().manual_seed(u)) + 3 for u in range(20)])[:, :8]
    order[:, 6:] = -1  # nobody has more than six left
    ranked = {"by": "gcn", "top": 8, "count": 4, "temperature": 3.0}
    feed = feed_of(catalogue, graph, each="node", negatives=1, ranked=ranked, order=order)
    other = feed_of(catalogue, graph, each="node", negatives=1, ranked={**ranked, "shuffled": True}, order=order)
    nodes, taken = feed.nodes.tolist(), taken_by(graph, "user")
    places = np.zeros(8)
    for epoch in range(20):
        for mine, shuffled in zip(
            feed.epoch(30, seed=0, epoch=epoch), other.epoch(30, seed=0, epoch=epoch), strict=True
        ):
            anchors, item_AM = candidates(mine, "user")
            others, foreign_AM = candidates(shuffled, "user")
            assert anchors == others
            for a, who in enumerate(anchors):
                heir = nodes[(nodes.index(who) + 1) % len(nodes)]
                for batch, items, owner in ((mine, item_AM[a], who), (shuffled, foreign_AM[a], heir)):
                    drawn, marks = items[2:].tolist(), batch.ranked().marks
                    assert bool(marks["own"][a, 2:].isnan().all())
                    there = [item for item in drawn if item != 0]
                    assert len({*there}) == len(there) and {*there} <= {*order[owner, :6].tolist()}
                    for item, is_taken in zip(drawn, marks["taken"][a, 2:].tolist(), strict=True):
                        assert math.isnan(is_taken) if item == 0 else bool(is_taken) == (item in taken[who])
                    if owner == who:
                        places[[order[who].tolist().index(item) for item in there]] += 1
    assert places[0] > places[5] > 0 and places[6:].sum() == 0


def test_a_ranking_that_was_not_made_and_one_that_is_too_short_are_refused(catalogue) -> None:
    graph, ranked = skewed(20, 30), {"by": "gcn", "top": 20, "count": 10}
    with pytest.raises(TrainingError, match="was not made"):
        next(feed_of(catalogue, graph, ranked=ranked).epoch(8, seed=0, epoch=0))
    short = feed_of(catalogue, graph, ranked=ranked, order=torch.full((20, 6), 3))
    with pytest.raises(LogError, match="draws 10 of 6 places"):
        next(short.epoch(8, seed=0, epoch=0))
    with pytest.raises(ValueError, match="draws 9 of 3 places"):
        Ranked(by="gcn", top=3, count=9)
    with pytest.raises(ValueError, match="no candidate besides its own"):
        CandidatesSpec(negatives=0)


def test_groups_of_candidates_are_those_of_their_popularity(catalogue) -> None:
    graph = skewed(20, 30)
    feed = feed_of(catalogue, graph, negatives=5, groups=3, in_batch=True)
    group_I = graph.popularity_groups(3)
    for batch in feed.epoch(50, seed=0, epoch=0):
        _, item_AM = candidates(batch, "user")
        assert torch.equal(batch.ranked().marks["popularity"], group_I[item_AM].float())
    assert {*group_I[FIRST:].tolist()} == {0, 1, 2}


def test_anchors_on_the_other_side_are_those_of_the_graph_turned_round(catalogue) -> None:
    graph = skewed(20, 30)
    options = {"each": "node", "positives": 2, "negatives": 3, "batch": 9}
    items = list(feed_of(catalogue, graph, anchor="item", **options).epoch(0, seed=0, epoch=0))
    users = list(feed_of(catalogue, graph.flipped(), anchor="user", **options).epoch(0, seed=0, epoch=0))
    for one, other in zip(items, users, strict=True):
        assert candidates(one, "item")[0] == other.serving.ids(("user_id",))[0, : other.ranked().anchors].tolist()
        assert torch.equal(candidates(one, "item")[1], candidates(other, "user")[1])


def test_a_cursor_goes_on_where_it_stood(catalogue) -> None:
    graph = skewed(20, 30)
    feed = feed_of(catalogue, graph, negatives=2, shared=True, batch=32)
    cursor = Cursor(feed, 1, 5)
    whole = [next(cursor) for _ in range(feed.steps(1) + 4)]
    cursor.close()
    again = Cursor(feed, 1, 5)
    again.go_to(0, feed.steps(1) - 2)
    rest = [next(again) for _ in range(6)]
    again.close()
    for one, other in zip(whole[-6:], rest, strict=True):
        assert torch.equal(one.row_id_B, other.row_id_B) and torch.equal(one.serving.ids_FB, other.serving.ids_FB)
        assert all(torch.equal(a, b) for a, b in zip(one.ranked().parts, other.ranked().parts, strict=True))


def test_whoever_has_taken_everything_is_named_when_read_ahead(catalogue) -> None:
    everything = Graph.of(4, 6, torch.tensor([2, 2, 2, 2, 3]), torch.tensor([2, 3, 4, 5, 2]))
    with pytest.raises(LogError, match="user row 2 has taken all items"):
        list(feed_of(catalogue, everything, negatives=1).epoch(8, seed=0, epoch=0))
    (only,) = feed_of(catalogue, everything, negatives=3, shared=True).epoch(8, seed=0, epoch=0)
    for who, own in zip(candidates(only, "user")[0], only.ranked().marks["own"][:, 1:], strict=True):
        assert bool(own.isnan().all()) == (who == 2)  # shared negatives are left out one by one
