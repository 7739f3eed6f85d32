"""Draws: what they depend on, what they never hit, and how often they hit what."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from recdistill.data.draws import uniforms, words
from recdistill.data.graph import Graph
from recdistill.data.negatives import FIRST, TOTAL, Negatives, by_rank, in_batch, some_positives
from recdistill.errors import LogError

EDGES = st.sets(st.tuples(st.integers(2, 6), st.integers(2, 11)), min_size=1, max_size=35)


def graph_of(edges, users=7, items=12) -> Graph:
    return Graph.of(users, items, *(torch.tensor(side) for side in zip(*edges, strict=True)))


def skewed(users=40, items=60, seed=0) -> Graph:
    """Each user has about a third of the items, popular ones more often."""
    rng = np.random.default_rng(seed)
    chance = np.linspace(0.9, 0.02, items - FIRST)
    edges = [(u, FIRST + i) for u in range(FIRST, users) for i in np.flatnonzero(rng.random(items - FIRST) < chance)]
    return graph_of(edges, users, items)


def frequencies(negatives: Negatives, user: int, draws: int = 40_000) -> np.ndarray:
    """How often each item was drawn for a user, over many rows."""
    rows = torch.arange(draws // 8)
    drawn = negatives.draw(torch.full_like(rows, user), rows, 8, seed=3, step=1)
    return np.bincount(drawn.item_BM.flatten().numpy(), minlength=len(negatives.weight_I))


def fits(counts: np.ndarray, weight: np.ndarray) -> float:
    """The p-value of counts under probabilities in proportion to weights; impossible values must not occur."""
    assert counts[weight == 0].sum() == 0
    wanted = weight > 0
    return float(stats.chisquare(counts[wanted], weight[wanted] / weight.sum() * counts.sum()).pvalue)


@pytest.mark.parametrize("alpha", [None, 0.75, 1.0, 2.0])
def test_negatives_are_drawn_in_proportion_to_their_weights_among_what_is_left(alpha) -> None:
    graph = skewed()
    negatives = Negatives.uniform(graph) if alpha is None else Negatives.popular(graph, alpha)
    degree = graph.item_degree_I.double().numpy()
    expected = np.ones_like(degree) if alpha is None else np.where(degree > 0, np.maximum(degree, 1) ** alpha, 0)
    expected[:FIRST] = 0
    for user in (2, 17, 39):
        left = expected.copy()
        left[graph.item_E[graph.user_E == user].numpy()] = 0
        assert fits(frequencies(negatives, user), left) > 1e-3


@given(EDGES, st.integers(0, 2**31), st.sampled_from([None, 0.75, 2.0]))
def test_a_draw_is_never_a_positive_nor_a_reserved_row(edges, seed, alpha) -> None:
    graph = graph_of(edges)
    negatives = Negatives.uniform(graph) if alpha is None else Negatives.popular(graph, alpha)
    users = torch.arange(7)
    drawable = (negatives.weight_I > 0).sum() - graph.positives.count(users)
    users = users[drawable > 0]
    drawn = negatives.draw(users, users * 13, 50, seed=seed, step=2)
    assert not bool(graph.positives.contains(users, drawn.item_BM).any())
    assert bool((negatives.weight_I[drawn.item_BM] > 0).all())


@given(EDGES, st.sampled_from([None, 0.75]))
@settings(max_examples=30)
def test_every_point_of_the_shorter_line_finds_the_item_that_counting_finds(edges, alpha) -> None:
    graph = graph_of(edges)
    weight_I = torch.tensor([0, 0, 3, 1, 2, 1, 4, 1, 2, 5, 1, 2]) if alpha else Negatives.uniform(graph).weight_I
    negatives = Negatives(graph.positives, weight_I)
    for user in range(2, 7):
        mine = set(graph.item_E[graph.user_E == user].tolist())
        line = [i for i in range(12) for _ in range(int(weight_I[i])) if i not in mine]
        if not line:
            continue
        places, user_B = torch.arange(len(line)).unsqueeze(0), torch.tensor([user])
        found = torch.searchsorted(negatives._ends_I, places + negatives._skipped(user_B, places), right=True)
        assert found[0].tolist() == line


def test_the_probabilities_that_come_along_are_those_of_the_draws() -> None:
    graph = skewed()
    negatives = Negatives.popular(graph, 0.75)
    user = torch.tensor([5])
    drawn = negatives.draw(user, user, 4000, seed=0, step=0)
    q = {int(i): float(p) for i, p in zip(drawn.item_BM[0], drawn.log_q_BM[0].exp() / 4000, strict=True)}
    assert sum(q.values()) == pytest.approx(1, abs=0.02)  # nearly every item has been met
    left = graph.item_degree_I.double() ** 0.75
    left[graph.item_E[graph.user_E == 5]] = 0
    assert all(p == pytest.approx(float(left[i] / left.sum()), rel=1e-5) for i, p in q.items())
    assert abs(int(negatives.weight_I.sum()) - TOTAL) < 100


def test_draws_depend_on_row_seed_and_step_but_not_on_the_batch() -> None:
    negatives = Negatives.popular(skewed())
    rows, users = torch.arange(30), torch.arange(30) % 38 + 2
    first = negatives.draw(users, rows, 5, seed=1, step=7)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    again = negatives.draw(users[order], rows[order], 5, seed=1, step=7)
    assert torch.equal(again.item_BM, first.item_BM[order]) and torch.equal(again.log_q_BM, first.log_q_BM[order])
    longer = negatives.draw(users, rows, 9, seed=1, step=7)
    assert torch.equal(longer.item_BM[:, :5], first.item_BM)
    for seed, step in ((2, 7), (1, 8)):
        other = negatives.draw(users, rows, 5, seed=seed, step=step)
        assert (other.item_BM == first.item_BM).float().mean() < 0.2


def test_popularity_to_the_power_of_nothing_is_uniform_and_below_it_is_refused() -> None:
    graph = graph_of([(2, 2), (2, 3)], 3, 6)
    assert bool((Negatives.popular(graph, 0.0).weight_I[FIRST:] == TOTAL // 4).all())
    with pytest.raises(LogError, match="alpha must not be negative, found -1"):
        Negatives.popular(graph, -1)


def test_a_user_who_has_everything_is_refused_and_one_left_item_is_found() -> None:
    everything = [(2, i) for i in range(2, 8)]
    full = graph_of([*everything, (3, 2)], 4, 8)
    with pytest.raises(LogError, match="user row 2 has taken all items"):
        Negatives.uniform(full).draw(torch.tensor([3, 2]), torch.tensor([0, 1]), 3, seed=0, step=0)
    almost = graph_of([e for e in everything if e[1] != 6], 4, 8)
    drawn = Negatives.uniform(almost).draw(torch.tensor([2]), torch.tensor([0]), 3, seed=0, step=0)
    assert drawn.item_BM.tolist() == [[6, 6, 6]]
    assert torch.allclose(drawn.log_q_BM.exp(), torch.full((1, 3), 3.0))
    empty = Negatives.uniform(almost).draw(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), 3,
                                           seed=0, step=0)  # fmt: skip
    assert empty.item_BM.shape == (0, 3)


def test_items_of_a_batch_are_negatives_unless_the_user_has_them() -> None:
    graph = graph_of([(2, 2), (2, 3), (3, 3), (4, 4), (5, 2)])
    users, items = torch.tensor([2, 3, 4, 5]), torch.tensor([2, 3, 4, 2])
    found = in_batch(users, items, graph.positives, graph.item_degree_I.double() / 5)
    nan = float("nan")
    expected = torch.tensor([[1, nan, 0, nan], [0, 1, 0, 0], [0, 0, 1, 0], [nan, 0, 0, 1.0]])
    assert torch.allclose(found.label_BM, expected, equal_nan=True)
    assert torch.allclose(found.log_q_BM[0].exp(), torch.tensor([1, 3 * 2 / 5, 3 * 1 / 5, 3 * 2 / 5]))


def test_what_is_expected_in_a_batch_is_how_often_an_item_stands_there() -> None:
    graph = skewed()
    edges = torch.randint(len(graph.item_E), (50_000,), generator=torch.Generator().manual_seed(0))
    met = torch.bincount(graph.item_E[edges], minlength=graph.items)
    first = torch.tensor([0, 5])
    share = graph.item_degree_I.double() / len(graph.item_E)
    log_q = in_batch(graph.user_E[first], graph.item_E[first], graph.positives, share).log_q_BM[0, 1]
    assert float(log_q.exp()) == pytest.approx(float(met[graph.item_E[5]]) / 50_000, rel=0.1)


def test_positives_are_drawn_from_the_users_own_items_all_alike() -> None:
    graph = skewed()
    rows = torch.arange(8000)
    found = some_positives(graph.positives, torch.full_like(rows, 9), rows, 4, seed=0, step=0)
    mine = np.zeros(60)
    mine[graph.item_E[graph.user_E == 9].numpy()] = 1
    assert fits(np.bincount(found.flatten().numpy(), minlength=60), mine) > 1e-3
    with pytest.raises(LogError, match="user row 0 has no item"):
        some_positives(graph.positives, torch.tensor([9, 0]), torch.tensor([0, 1]), 4, seed=0, step=0)


def test_places_of_a_ranking_are_drawn_without_replacement_by_their_weights() -> None:
    rows, ranks, temperature = torch.arange(30_000), 6, 2.0
    found = by_rank(rows, ranks, 2, temperature=temperature, seed=0, step=0)
    assert bool((found[:, 0] < found[:, 1]).all())
    weight = np.exp(-np.arange(1, ranks + 1) / temperature)
    weight /= weight.sum()
    chance = {
        (a, b): weight[a] * weight[b] / (1 - weight[a]) + weight[b] * weight[a] / (1 - weight[b])
        for a, b in itertools.combinations(range(ranks), 2)
    }
    met = np.array([int(((found[:, 0] == a) & (found[:, 1] == b)).sum()) for a, b in chance])
    assert stats.chisquare(met, np.array(list(chance.values())) * len(rows)).pvalue > 1e-3
    with pytest.raises(LogError, match="draws 7 of 6 places"):
        by_rank(rows, 6, 7, temperature=1.0, seed=0, step=0)


def test_uniform_numbers_are_uniform_and_streams_are_apart() -> None:
    found = uniforms(torch.arange(20_000), 4, purpose="x", seed=0).numpy()
    assert stats.kstest(found.ravel(), "uniform").pvalue > 1e-3
    others = [uniforms(torch.arange(20_000), 1, purpose=p, seed=s, step=t).numpy()[:, 0]
              for p, s, t in (("x", 0, 1), ("x", 1, 0), ("y", 0, 0))]  # fmt: skip
    correlation = np.corrcoef(np.column_stack([found, *others]).T)
    assert np.abs(correlation - np.eye(7)).max() < 0.04
    assert len(torch.unique(words(torch.arange(10_000), 10, purpose="x", seed=0))) == 100_000
